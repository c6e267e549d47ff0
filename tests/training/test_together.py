"""What processes do together: one works and all know the outcome; nobody waits for one that hangs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate import Accelerator

from nystromformer.training import devices
from nystromformer.training.checkpoint import Progress, save_checkpoint
from nystromformer.training.together import PATIENCE

from .test_checkpoint import trained


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> list[dict]:
    out = tmp_path_factory.mktemp("together")
    model, optimizer = trained()
    save_checkpoint(out / "checkpoints", model, optimizer, Progress(3), Accelerator(cpu=True), keep=2)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [*torchrun, "-m", "tests.training.ranks", str(out)]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        command, env=environment, cwd=root, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


def test_what_the_main_process_found_is_everybodys(seen):
    assert [rank["value"] for rank in seen] == [0, 0]


def test_mistake_of_the_main_process_is_everybodys(seen):
    assert [rank["mistake of main"] for rank in seen] == ["UserError: of process 0"] * 2


def test_fault_of_the_main_process_ends_the_others_in_a_line(seen):
    assert seen[0]["fault of main"] == "ZeroDivisionError"
    assert seen[1]["fault of main"].startswith("UserError: another process failed: ZeroDivisionError")


def test_mistake_of_any_process_is_everybodys(seen):
    assert [rank["mistake of one"] for rank in seen] == ["UserError: of process 1"] * 2
    assert [rank["own values"] for rank in seen] == [0, 1]


def test_work_longer_than_an_exchange_may_take_is_waited_for(seen):
    assert [rank["long work"] for rank in seen] == ["waited"] * 2


def test_one_process_verifies_the_checkpoint_and_all_take_it(seen):
    assert seen[0]["checkpoint"] == seen[1]["checkpoint"]
    assert seen[0]["checkpoint"].endswith("checkpoints/step-3")
    assert sorted(seen[0]["hashed"]) == ["model.safetensors", "optimizer.pt", "random-0.pt"]
    assert seen[1]["hashed"] == []


def test_exchange_with_a_process_that_hangs_ends_soon(seen):
    assert [rank["exchange"] for rank in seen] == ["ended", "slept"]
    assert devices.TRAINING_TIMEOUT.total_seconds() <= 3600 < PATIENCE.total_seconds()
