"""What config.json may still say of choices that this version no longer has."""

import json
from typing import Any

import pytest

from nystromformer import NystromformerConfig, NystromformerForPreTraining
from nystromformer.cli import main

SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def saved(folder, **written) -> None:
    NystromformerForPreTraining(NystromformerConfig(**SHAPE, intermediate_size=16)).save_pretrained(folder)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **written}))


def test_a_model_with_exact_short_rows_opens(tmp_path):
    saved(tmp_path, short_rows="exact", short_row_segment=8)
    model = NystromformerForPreTraining.from_pretrained(tmp_path)
    assert not hasattr(model.config, "short_rows")
    assert model.nystromformer.encoder.layer[0].attention.self.branch(8) == "exact"


@pytest.mark.parametrize("choice", ["exact_without_convolution", "landmark_per_token", "segments"])
def test_another_choice_for_short_rows_is_refused_in_one_line(tmp_path, choice, capsys):
    source = tmp_path / "source"
    saved(source, short_rows=choice)
    with pytest.raises(ValueError, match=f"short_rows='{choice}' was removed"):
        NystromformerConfig.from_pretrained(source)
    capsys.readouterr()
    assert main(["convert", f"source={source}", f"target={tmp_path / 'target'}"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"short_rows='{choice}' was removed" in line
    assert not (tmp_path / "target").exists()
    assert main(["pretrain", f"model.short_rows={choice}"]) == 2
    assert "model.short_rows is no setting" in capsys.readouterr().err
