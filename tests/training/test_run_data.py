"""A run goes on with the data it was trained on, or with none."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from nystromformer.cli import main
from nystromformer.data import plan
from nystromformer.training import run_data
from tests.training.conftest import write_corpus


@pytest.fixture
def own(overrides: list[str], tmp_path: Path) -> list[str]:
    """The overrides of a short run, with a corpus and a folder of prepared data of this test's own."""
    corpus = write_corpus(tmp_path / "stories.txt")
    return [
        *(word for word in overrides if not word.startswith(("data.files", "data.folder"))),
        f"data.files=[{corpus}]",
        f"data.folder={tmp_path / 'prepared'}",
        "training.steps=3",
    ]


def prepared_in(tmp_path: Path) -> Path:
    (found,) = (path.parent for path in (tmp_path / "prepared").glob("*/manifest.json"))
    return found


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(["pretrain", *words]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("nystromformer: ")]
    assert len(lines) == 1
    return lines[0]


def test_a_stopped_run_is_not_resumed_on_a_corpus_that_lost_half_its_documents(
    own: list[str], tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    from nystromformer.training import loop

    step = loop.train_step

    def step_and_signal(*arguments: object, **options: object) -> object:
        os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", step_and_signal)
        with pytest.raises(SystemExit):
            main(["pretrain", *own])
    assert (tmp_path / "runs/smoke/checkpoints/step-1").is_dir()
    folder, corpus = prepared_in(tmp_path), tmp_path / "stories.txt"
    whole = corpus.read_text()
    corpus.write_text("\n\n".join(whole.split("\n\n")[::2]))

    message = refused(own, capsys)
    for part in (
        "runs/smoke was trained on",
        "stories.txt has changed",
        f"data.prepared={folder}",
        "name=OTHER",
    ):
        assert part in message
    assert prepared_in(tmp_path) == folder  # known before anything was prepared

    corpus.write_text(whole)
    os.utime(corpus, ns=(0, 0))
    assert main(["pretrain", *own]) == 0
    assert json.loads((tmp_path / "runs/smoke/report.json").read_text())["steps"] == 3


def test_the_message_s_own_words_let_the_run_go_on(own: list[str], tmp_path: Path, capsys):
    assert main(["pretrain", *own, "training.steps=2"]) == 0
    (tmp_path / "stories.txt").unlink()
    capsys.readouterr()
    assert main(["pretrain", *own, "training.steps=2"]) == 0  # gone: the prepared folder stands in
    assert "made by the same settings and is taken" in capsys.readouterr().err
    (tmp_path / "stories.txt").write_text("Something else. All of it.\n\nAnd more. Much more.")
    message = refused([*own, "training.steps=2"], capsys)
    (word,) = (word.rstrip(",") for word in message.split() if word.startswith("data.prepared="))
    assert main(["pretrain", *own, "training.steps=2", word]) == 0


def test_data_prepared_elsewhere_train_as_at_home(own: list[str], tmp_path: Path):
    assert main(["pretrain", *own, "name=home"]) == 0
    moved = tmp_path / "other machine" / "data"
    shutil.copytree(prepared_in(tmp_path), moved)
    (tmp_path / "stories.txt").unlink()
    shutil.rmtree(tmp_path / "prepared")
    away = [word for word in own if not word.startswith("data.files")]
    away += ["name=away", f'data.prepared="{moved}"']
    assert main(["pretrain", *away]) == 0
    home, there = (tmp_path / "runs" / name / "model/model.safetensors" for name in ("home", "away"))
    assert home.read_bytes() == there.read_bytes()


def test_a_tokenizer_that_changed_in_place_is_refused(own: list[str], tmp_path: Path, capsys):
    assert main(["prepare", *own]) == 0
    tokenizer = tmp_path / "tokenizer"
    shutil.copytree(prepared_in(tmp_path) / "tokenizer", tokenizer)
    words = [*own, f"tokenizer.path={tokenizer}"]
    assert main(["pretrain", *words]) == 0
    path = tokenizer / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    first, second = sorted(vocabulary, key=vocabulary.__getitem__)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(content))
    assert "the tokenizer has changed" in refused(words, capsys)


def test_a_new_version_of_a_package_that_makes_the_same_goes_on(
    own: list[str], tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    assert main(["pretrain", *own]) == 0
    monkeypatch.setattr(plan, "version", lambda name: "99")
    capsys.readouterr()
    assert main(["pretrain", *own]) == 0
    assert "sentencex is 99 and was" in capsys.readouterr().err


def test_runs_that_began_before_there_was_a_record(own: list[str], tmp_path: Path, capsys):
    """Their checkpoints know the name of their folder alone, which came of the files' times."""
    assert main(["pretrain", *own]) == 0
    run = tmp_path / "runs/smoke"
    (run / "data.json").unlink()
    state = next((run / "checkpoints").glob("step-*/state.json"))
    content = json.loads(state.read_text())
    assert content["data"] == prepared_in(tmp_path).name
    state.write_text(json.dumps({**content, "data": "text-0123456789ab"}))

    capsys.readouterr()
    assert main(["pretrain", *own]) == 0  # gone: nothing to compare, and it says so
    assert "text-0123456789ab, which is no longer there to compare" in capsys.readouterr().err

    old = tmp_path / "prepared" / "text-0123456789ab"
    shutil.copytree(prepared_in(tmp_path), old)
    (run / "data.json").unlink()
    assert main(["pretrain", *own]) == 0  # there, and the same
    manifest = json.loads((old / "manifest.json").read_text())
    (run / "data.json").unlink()
    manifest["tokenizer_sha256"] = "0"
    (old / "manifest.json").write_text(json.dumps(manifest))
    assert f"was trained on {old.name}" in refused(own, capsys)


def test_a_run_without_a_checkpoint_may_take_other_data(own: list[str], tmp_path: Path, monkeypatch):
    assert main(["pretrain", *own]) == 0
    before = json.loads((tmp_path / "runs/smoke/data.json").read_text())
    shutil.rmtree(tmp_path / "runs/smoke/checkpoints")
    write_corpus(tmp_path / "stories.txt", documents=50)
    assert main(["pretrain", *own]) == 0
    assert json.loads((tmp_path / "runs/smoke/data.json").read_text())["content"] != before["content"]


def test_a_damaged_record_is_named(own: list[str], tmp_path: Path, capsys):
    assert main(["pretrain", *own]) == 0
    (tmp_path / "runs/smoke" / run_data._RECORD).write_text("{")
    assert "data.json is damaged" in refused(own, capsys)


def test_a_start_that_was_trained_anew_in_place_is_told(own: list[str], tmp_path: Path, capsys):
    assert main(["pretrain", *own, "name=first"]) == 0
    model = tmp_path / "runs/first/model"
    second = [*own, "init=checkpoint", f"init.path={model}", f"tokenizer.path={model}", "name=second"]
    assert main(["pretrain", *second]) == 0
    assert main(["pretrain", *second]) == 0
    assert "holds other weights" not in capsys.readouterr().err
    weights = load_file(model / "model.safetensors")
    first = min(weights)
    save_file({**weights, first: weights[first] + 1e-3}, model / "model.safetensors", {"format": "pt"})
    assert main(["pretrain", *second]) == 0
    told = capsys.readouterr().err
    assert f"began from {model}, which holds other weights now: the run keeps its own; name=OTHER" in told
