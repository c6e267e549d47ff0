"""Starting runs, alone or on several processes, and comparing what they left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

COMMAND = [sys.executable, "-m", "nystromformer", "pretrain"]


def on_processes(count: int, arguments: list[str], command: str = "pretrain") -> str:
    """Run `nystromformer COMMAND` on so many CPU processes over gloo; what it printed.

    Raises where it fails.
    """
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    words = [*torchrun, "-m", "nystromformer", command, *arguments]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


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
