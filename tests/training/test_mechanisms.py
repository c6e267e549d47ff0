"""Every mechanism pretrains: it finds a pattern that only the rest of the row gives away."""

import math
from itertools import permutations

import pytest

from nystromformer.cli import main

from .runs import events

WORDS = ["amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "igloo", "jewel"]


@pytest.fixture
def planted(tmp_path) -> str:
    """Documents of two words in turn: a masked one is told by the row, and not by how frequent it is."""
    texts = [" ".join([f"{one} {other} " * 4 + "."] * 5) for one, other in permutations(WORDS, 2)]
    path = tmp_path / "planted.txt"
    path.write_text("\n\n".join(texts), encoding="utf-8")
    return f"data.files=[{path}]"


@pytest.mark.parametrize(
    "changes",
    [
        ["model.landmarks=segment_means"],
        pytest.param(["model.landmarks=uniform"], marks=pytest.mark.slow),
        pytest.param(["model.landmarks=kmeans"], marks=pytest.mark.slow),
        ["model.attention=softmax", "model.conv_kernel_size=null", "model.attention_dropout=0.1"],
        ["model.attention=linformer", "model.linformer_projected=16"],
        ["model.attention=longformer", "model.longformer_window=9"],
        ["model.attention=performer", "model.performer_features=32"],
    ],
    ids=lambda changes: changes[0].partition("=")[2],
)
def test_pretrains(overrides, planted, tmp_path, changes):
    size = ["training.steps=36", "training.learning_rate=3e-3", "init=unigram"]
    size += ["training.global_batch_size=16", "training.loader_workers=0"]
    assert main(["pretrain", *overrides, planted, "data.max_documents=null", *size, *changes]) == 0
    run = tmp_path / "runs/smoke"
    losses = [event["loss"] for event in events(run, "train")]
    assert all(map(math.isfinite, losses))
    last = events(run, "validation")[-1]
    assert last["mlm_loss"] < last["unigram_loss"] - 0.3
