"""Whole runs, small: what a run leaves, and that it survives being stopped."""

import json
import signal
import subprocess
from itertools import pairwise

import pytest
from transformers import pipeline

from nystromformer.cli import main

from .runs import COMMAND, events, losses, wait_for


def test_a_run_leaves_everything_and_a_finished_run_is_not_repeated(overrides, tmp_path, capsys):
    assert main(["pretrain", *overrides]) == 0
    run = tmp_path / "runs/smoke"
    printed = capsys.readouterr().out
    for name in (
        "config.yaml",
        "metrics.jsonl",
        "curves.png",
        "speed.png",
        "report.json",
        "report.md",
        "model",
    ):
        assert (run / name).exists()
    assert (run / "checkpoints/latest").read_text() == "step-12\n"
    assert [event["step"] for event in events(run, "validation")] == [6, 12]
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads((run / "report.json").read_text())
    assert report["final"]["mlm_loss"] == events(run, "validation")[-1]["mlm_loss"]
    assert len(report["filled"]) == 3
    for item in report["filled"]:
        assert item["sentence"] in printed
        assert item["sentence"].count("[MASK]") == 1
        assert item["word"] not in ("[UNK]", "")
    fill = pipeline("fill-mask", model=str(run / "model"))
    assert type(fill.model).__module__ == "nystromformer.model.heads"
    assert len(fill("the old [MASK] watched a quiet film.")) == 5

    before = losses(run)
    assert main(["pretrain", *overrides]) == 0
    assert losses(run) == before
    assert "resumed at step 12" in capsys.readouterr().out


def test_a_signal_finishes_the_step_and_writes_a_checkpoint(overrides, tmp_path):
    changes = ["training.steps=100000", "training.checkpoint_every=100000", "training.log_every=1"]
    process = subprocess.Popen([*COMMAND, *overrides, *changes], stdout=subprocess.PIPE, text=True)
    wait_for(tmp_path / "runs/smoke/metrics.jsonl", process)
    while "step" not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    step = int((tmp_path / "runs/smoke/checkpoints/latest").read_text().removeprefix("step-"))
    assert f"stopped at step {step}; the same command goes on from there" in printed


def test_a_time_limit_ends_the_run_as_finished(overrides, tmp_path):
    changes = ["training.steps=100000", "training.max_minutes=0.05", "training.log_every=1"]
    changes += ["training.validate_every=100000", "training.checkpoint_every=100000"]
    assert main(["pretrain", *overrides, *changes]) == 0
    run = tmp_path / "runs/smoke"
    last = events(run, "validation")[-1]
    assert 0 < last["step"] < 100000
    for before, event in pairwise(events(run, "train")[2:]):  # after the warm-up: what time leaves of 3e-3
        assert event["learning_rate"] == pytest.approx(3e-3 * (1 - before["seconds"] / 3), abs=4e-5)
    assert main(["pretrain", *overrides, *changes]) == 0
    assert events(run, "validation")[-1] == last


@pytest.mark.parametrize("tracker", ["wandb", "tensorboard"])
def test_trackers_work_offline_without_an_account(overrides, tmp_path, tracker, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert main(["pretrain", *overrides, f"tracking={tracker}", "training.steps=4"]) == 0
    folder = tmp_path / "runs/smoke" / tracker
    pattern = "offline-run-*/run-*.wandb" if tracker == "wandb" else "events.out.tfevents.*"
    assert any(file.stat().st_size > 500 for file in folder.glob(pattern))


def test_a_run_starts_from_another_run(overrides, tmp_path):
    assert main(["pretrain", *overrides, "training.steps=3", "name=first"]) == 0
    model = tmp_path / "runs/first/model"
    changes = ["init=checkpoint", f"init.path={model}", f"tokenizer.path={model}", "model.max_length=96"]
    assert main(["pretrain", *overrides, *changes, "training.steps=3", "name=longer"]) == 0
    card = (tmp_path / "runs/longer/model/README.md").read_text()
    assert str(model) in card
