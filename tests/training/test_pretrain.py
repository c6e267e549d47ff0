"""Whole runs, small: what a run leaves, and that it survives being stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import pipeline

from nystromformer.cli import main

COMMAND = [sys.executable, "-m", "nystromformer", "pretrain"]


def events(run: Path, kind: str) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


def losses(run: Path) -> list[tuple]:
    """What must be equal in two runs that computed the same."""
    train = [(e["step"], e["mlm_loss"], e["sop_loss"], e["gradient_norm"]) for e in events(run, "train")]
    return train + [(e["step"], e["mlm_loss"], e["sop_accuracy"]) for e in events(run, "validation")]


def same_weights(one: Path, other: Path) -> bool:
    first, second = load_file(one / "model/model.safetensors"), load_file(other / "model/model.safetensors")
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def wait_for(path: Path, process: subprocess.Popen, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, f"ended before {path} was written"
        assert time.monotonic() < deadline, f"no {path} after {seconds} s"
        time.sleep(0.02)


def test_a_run_leaves_everything_and_a_finished_run_is_not_repeated(overrides, tmp_path, capsys):
    assert main(["pretrain", *overrides]) == 0
    run = tmp_path / "runs/smoke"
    printed = capsys.readouterr().out
    for name in ("config.yaml", "metrics.jsonl", "curves.png", "report.json", "model"):
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


def test_validation_loss_falls_on_a_corpus_with_a_pattern(overrides, tmp_path):
    changes = ["training.steps=150", "training.global_batch_size=16", "training.validate_every=75"]
    assert main(["pretrain", *overrides, *changes, "training.learning_rate=3e-3"]) == 0
    last = events(tmp_path / "runs/smoke", "validation")[-1]
    assert last["mlm_loss"] < last["unigram_loss"] - 0.5


def test_killed_and_run_again_it_computes_the_same(overrides, tmp_path):
    changes = [
        "training.steps=40",
        "training.checkpoint_every=7",
        "training.log_every=1",
        "training.validate_every=20",
        "training.loader_workers=1",
        "training.micro_batch_size=4",  # two micro-batches a step
        "model.hidden_dropout=0.1",
    ]
    assert main(["pretrain", *overrides, *changes, "name=whole"]) == 0
    command = [*COMMAND, *overrides, *changes, "name=killed"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    wait_for(tmp_path / "runs/killed/checkpoints/step-14", process)
    process.kill()
    process.wait()
    assert not (tmp_path / "runs/killed/model").exists()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert losses(tmp_path / "runs/killed") == losses(tmp_path / "runs/whole")
    assert same_weights(tmp_path / "runs/killed", tmp_path / "runs/whole")


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


def test_two_processes_compute_what_one_does(overrides, tmp_path):
    changes = ["training.steps=10", "training.log_every=1", "training.validate_every=5"]
    assert main(["pretrain", *overrides, *changes, "name=one"]) == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "nystromformer", "pretrain", *overrides, *changes, "name=two"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, capture_output=True, timeout=120)
    one, two = losses(tmp_path / "runs/one"), losses(tmp_path / "runs/two")
    assert len(one) == len(two) == 12
    for mine, theirs in zip(one, two, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-5)


def test_a_time_limit_ends_the_run_as_finished(overrides, tmp_path):
    changes = ["training.steps=100000", "training.max_minutes=0.15"]
    assert main(["pretrain", *overrides, *changes]) == 0
    run = tmp_path / "runs/smoke"
    last = events(run, "validation")[-1]
    assert 0 < last["step"] < 100000
    assert events(run, "train")[-1]["learning_rate"] < 2e-4  # of 2e-3: it decayed over the minutes
    assert main(["pretrain", *overrides, *changes]) == 0
    assert events(run, "validation")[-1] == last


@pytest.mark.parametrize("tracker", ["wandb", "tensorboard"])
def test_trackers_work_offline_without_an_account(overrides, tmp_path, tracker, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert main(["pretrain", *overrides, f"tracking={tracker}", "training.steps=4"]) == 0
    folder = tmp_path / "runs/smoke" / tracker
    pattern = "offline-run-*/run-*.wandb" if tracker == "wandb" else "events.out.tfevents.*"
    assert any(file.stat().st_size > 500 for file in folder.glob(pattern))


def test_exact_attention_trains_too(overrides, tmp_path):
    changes = ["model.attention=softmax", "model.conv_kernel_size=null", "training.steps=3"]
    assert main(["pretrain", *overrides, *changes]) == 0


def test_a_run_starts_from_another_run(overrides, tmp_path):
    assert main(["pretrain", *overrides, "training.steps=3", "name=first"]) == 0
    model = tmp_path / "runs/first/model"
    changes = ["init=checkpoint", f"init.path={model}", f"tokenizer.path={model}", "model.max_length=96"]
    assert main(["pretrain", *overrides, *changes, "training.steps=3", "name=longer"]) == 0
    card = (tmp_path / "runs/longer/model/README.md").read_text()
    assert str(model) in card
