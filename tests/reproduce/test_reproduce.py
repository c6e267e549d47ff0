"""Results at smoke size: their runs, files and figures."""

import json
import re

import pytest
import torch

from nystromformer import NystromformerConfig, NystromformerModel
from nystromformer.cli import main
from nystromformer.reproduce.starts import near_alone


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
    (model,) = tmp_path.glob("runs/longer_128_*/model")
    config = json.loads((model / "config.json").read_text())
    assert config["max_position_embeddings"] == 128
    tokenizer = json.loads((model / "tokenizer_config.json").read_text())
    assert tokenizer["model_max_length"] == 128
    card = (model / "README.md").read_text()
    assert re.search(r"\(run `longer_64_\w{8}` after 12 steps\), with a new optimizer", card)
    result = json.loads((tmp_path / "out/longer_smoke/result.json").read_text())
    assert result["seconds_before"] == 0
    capsys.readouterr()
    produced(tmp_path, "figure=longer", 'overrides=["data.workers=1"]', "again=true")
    assert "step " not in capsys.readouterr().out  # the runs are only read
    again = json.loads((tmp_path / "out/longer_smoke/result.json").read_text())
    took = sum(events[-1]["seconds"] for events in result["measured"]["validations"].values())
    assert again["seconds_before"] == pytest.approx(took)
    assert again["seconds"] > took
    page = (tmp_path / "out/longer_smoke/README.md").read_text()
    assert f", {took:.0f} of them in runs that were there" in page
    produced(tmp_path, "figure=longer", 'overrides=["data.workers=1","training.seed=5"]')
    assert len(list(tmp_path.glob("runs/longer_*"))) == 4, "another size is another run"


@pytest.mark.slow  # the trained BERT on one core
def test_starts(tmp_path):
    measured = produced(tmp_path, "table=starts")
    assert measured["errors"]["fitted"] < measured["errors"]["zero"]
    errors = measured["near_and_far"]
    both = "both, m = 16, w = 16"
    assert errors[both]["160"] < errors["landmarks alone, m = 16"]["160"]
    assert errors[both]["160"] < errors["neighbours alone, w = 16"]["160"]
    assert errors[f"{both}, fitted"]["160"] == pytest.approx(errors[both]["160"], rel=0.05)  # on one row
    wide = f"{both}, g = 8"
    assert errors[wide]["160"] < errors[both]["160"]
    assert errors[f"{wide}, reconstructed and transferred"]["160"] < errors[f"{wide}"]["160"] * 1.2
    assert measured["transfer"]["steps"] == 2


@torch.no_grad()
def test_neighbours_alone_are_attention_to_the_tokens_that_are_near():
    """Against a loop over the tokens; where everything is near it is exact attention."""
    torch.manual_seed(0)
    config = NystromformerConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        neighbours=4, num_landmarks=2, conv_kernel_size=None, initializer_range=0.5,
    )  # fmt: skip
    encoder = NystromformerModel(config).eval()
    inner = encoder.encoder.layer[0].attention.self
    hidden = torch.randn(1, 19, 8)
    short = hidden[:, :8]
    exact = inner(short, None)
    q, k, v = (p(hidden)[0].unflatten(-1, (2, 4)) for p in (inner.query, inner.key, inner.value))
    near_alone(encoder, 4)
    found = inner(hidden, None)[0].unflatten(-1, (2, 4))
    for i in range(19):
        near = [j for j in range(19) if j == 0 or abs(j // 4 - i // 4) <= 1]
        for head in range(2):
            share = (k[near, head] @ q[i, head] / 2).softmax(0)
            torch.testing.assert_close(found[i, head], share @ v[near, head], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(inner(short, None), exact)


@pytest.mark.slow
def test_warmstart(tmp_path):
    result = produced(tmp_path, "table=warmstart", 'overrides=["data.workers=1"]')
    steps = [[event["step"] for event in events] for events in result["validations"].values()]
    assert steps[0] == steps[1] == steps[2]
    last = {name: events[-1]["mlm_accuracy"] for name, events in result["validations"].items()}
    assert result["exact_minus_neighbours"] == last["exact"] - last["neighbours"]
    assert all(len(words) == 3 for filled in result["filled"].values() for words in filled)
