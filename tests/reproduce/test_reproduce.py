"""Results at smoke size: their runs, files and figures."""

import json

import pytest

from nystromformer.cli import main


def produced(tmp_path, *words: str) -> dict:
    folders = [
        f"folder={tmp_path}/out",
        f"runs_folder={tmp_path}/runs",
        f"prepared_folder={tmp_path}/prepared",
    ]
    assert main(["reproduce", *words, "scale=smoke", *folders]) == 0
    name = words[0].partition("=")[2]
    page = (tmp_path / f"out/{name}_smoke/README.md").read_text()
    result = json.loads((tmp_path / f"out/{name}_smoke/result.json").read_text())
    assert "Scale `smoke`" in page
    assert {"device", "torch", "commit"} <= result["machine"].keys()
    assert result["scale"] == "smoke"
    return result["measured"]


def test_longer(tmp_path, capsys):
    result = produced(tmp_path, "figure=longer", 'overrides=["data.workers=1"]')
    assert result["validations"].keys() == {"64", "128"}
    short, long = (events[-1] for events in result["validations"].values())
    assert result["gain"]["mlm_accuracy"] == pytest.approx(long["mlm_accuracy"] - short["mlm_accuracy"])
    assert (tmp_path / "out/longer_smoke/longer.png").stat().st_size > 10_000
    config = json.loads((tmp_path / "runs/longer_128/model/config.json").read_text())
    assert config["max_position_embeddings"] == 128
    tokenizer = json.loads((tmp_path / "runs/longer_128/model/tokenizer_config.json").read_text())
    assert tokenizer["model_max_length"] == 128
    card = (tmp_path / "runs/longer_128/model/README.md").read_text()
    assert "(run `longer_64` after 12 steps), with a new optimizer" in card
    capsys.readouterr()
    produced(tmp_path, "figure=longer", 'overrides=["data.workers=1"]', "again=true")
    assert "step " not in capsys.readouterr().out  # the runs are only read


@pytest.mark.slow  # the trained BERT on one core
def test_starts(tmp_path):
    errors = produced(tmp_path, "table=starts")["errors"]
    assert errors["fitted"] < errors["zero"]


@pytest.mark.slow
def test_warmstart(tmp_path):
    result = produced(tmp_path, "table=warmstart", 'overrides=["data.workers=1"]')
    steps = [[event["step"] for event in events] for events in result["validations"].values()]
    assert steps[0] == steps[1]
    assert all(len(words) == 3 for filled in result["filled"].values() for words in filled)
