"""Several processes compute what one does, and a run may change their number and how they share."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nystromformer.cli import main

from .runs import COMMAND, events, losses, on_processes, wait_for

# A step as small as a real run's: with larger ones Adam turns a last bit of a gradient near zero, which
# depends on the order of a sum, into a step of the full learning rate.
CALM = ["training.log_every=1", "training.learning_rate=3e-4", "model.hidden_dropout=0"]
SHORT = [*CALM, "training.steps=12", "training.checkpoint_every=6", "training.validate_every=6"]
LONG = [*CALM, "training.steps=50", "training.checkpoint_every=25", "training.validate_every=25"]
TOLERANCE = 1e-5


def agree(one: Path, other: Path) -> None:
    mine, theirs = losses(one), losses(other)
    assert len(mine) == len(theirs)
    for expected, found in zip(mine, theirs, strict=True):
        # Step, MLM loss and order loss (or accuracy); the gradient norm is not averaged over tokens.
        assert found[:3] == pytest.approx(expected[:3], rel=0, abs=TOLERANCE)


def go_back_to(run: Path, step: int) -> None:
    """Forget what came after a checkpoint, as if the run had been stopped there."""
    for checkpoint in (run / "checkpoints").glob("step-*"):
        if int(checkpoint.name[5:]) > step:
            shutil.rmtree(checkpoint)
    shutil.rmtree(run / "model")


def two_processes(arguments: list[str], **second: str) -> tuple[subprocess.Popen, subprocess.Popen]:
    """Started by hand, the second with more in its environment; what they print is piped."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    first, other = (
        subprocess.Popen(
            [*COMMAND, *arguments],
            env={**environment, "RANK": rank, "LOCAL_RANK": rank, **more},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank, more in (("0", {}), ("1", second))
    )
    return first, other


def test_two_processes_go_on_as_one(overrides, tmp_path):
    assert main(["pretrain", *overrides, *SHORT, "name=one"]) == 0
    on_processes(2, [*overrides, *SHORT, "name=two"])
    agree(tmp_path / "runs/one", tmp_path / "runs/two")
    go_back_to(tmp_path / "runs/two", 6)
    assert main(["pretrain", *overrides, *SHORT, "name=two"]) == 0
    agree(tmp_path / "runs/one", tmp_path / "runs/two")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_fifty_steps(overrides, tmp_path, processes, parallel):
    changes = [*overrides, *LONG, f"training.parallel={parallel}"]
    assert main(["pretrain", *changes, "name=one"]) == 0
    # Two micro-batches a step, so that gradients are also added up.
    on_processes(processes, [*changes, f"training.micro_batch_size={4 // processes}", "name=more"])
    agree(tmp_path / "runs/one", tmp_path / "runs/more")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((1, "ddp"), (2, "ddp")),
        ((4, "ddp"), (2, "ddp")),
        ((2, "ddp"), (2, "fsdp")),
        ((2, "fsdp"), (1, "ddp")),
    ],
)
def test_a_checkpoint_goes_on_elsewhere(overrides, tmp_path, before, after):
    def run(processes: int, parallel: str) -> None:
        on_processes(processes, [*overrides, *SHORT, f"training.parallel={parallel}"])

    run(*before)
    shutil.copytree(tmp_path / "runs/smoke", tmp_path / "runs/straight")
    go_back_to(tmp_path / "runs/smoke", 6)
    run(*after)
    assert (tmp_path / "runs/smoke/model").exists()
    agree(tmp_path / "runs/straight", tmp_path / "runs/smoke")


@pytest.mark.slow
def test_compiled_in_place(overrides, tmp_path):
    """The same losses within rounding, and the same names in what is saved."""
    changes = [*overrides, *CALM, "training.steps=4"]
    assert main(["pretrain", *changes, "name=eager"]) == 0
    assert main(["pretrain", *changes, "name=compiled", "training.compile=true"]) == 0
    eager, compiled = (losses(tmp_path / "runs" / name) for name in ("eager", "compiled"))
    for expected, found in zip(eager, compiled, strict=True):
        assert found[:3] == pytest.approx(expected[:3], abs=1e-3)
    for file in ("model/model.safetensors", "checkpoints/step-4/model.safetensors"):
        first, second = (load_file(tmp_path / "runs" / name / file) for name in ("eager", "compiled"))
        assert first.keys() == second.keys()
        assert not any("_orig_mod" in name for name in second)
        assert all(torch.isfinite(tensor).all() for tensor in second.values())


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_with_a_checkpoint(overrides, tmp_path):
    changes = ["training.steps=100000", "training.checkpoint_every=100000", "training.log_every=1"]
    processes = two_processes([*overrides, *changes])
    run = tmp_path / "runs/smoke"
    wait_for(run / "metrics.jsonl", processes[0])
    while not events(run, "train"):
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGUSR1)
    assert [process.wait(timeout=60) for process in processes] == [128 + signal.SIGUSR1] * 2
    assert (run / "checkpoints/latest").exists()


@pytest.mark.slow
def test_processes_that_compute_with_other_things_are_told_before_the_first_step(overrides):
    """Here one whose compiler failed; the first alone speaks."""
    changes = ["training.steps=2", "model.num_landmarks=16"]
    processes = two_processes([*overrides, *changes], NYSTROMFORMER_CPU_KERNEL="0")
    printed, nothing = (process.communicate(timeout=120)[0] for process in processes)
    assert [process.returncode for process in processes] == [0, 0]
    told = (
        "process 1 of 2 computes with attention composed of PyTorch's operators (process 0: compiled kernel "
    )
    assert printed.count(told) == 1
    assert printed.index(told) < printed.index("step 2/2")
    assert nothing == ""
