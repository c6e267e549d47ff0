"""What computes a run is part of its state, and a change of it is said."""

import json
import shutil
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nystromformer import NystromformerConfig
from nystromformer.attention import native
from nystromformer.cli import main
from nystromformer.training import devices
from nystromformer.training.checkpoint import Progress
from nystromformer.training.devices import computation_of, note_computation

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_landmarks": 16,
    "max_position_embeddings": 64,
}
CONFIG = NystromformerConfig(**SHAPE)
CPU = torch.device("cpu")
SUITS_THE_KERNEL = "model.num_landmarks=16"
BY_OPERATORS = "composed of PyTorch's operators"


def without_kernel(monkeypatch):
    """As after a compilation that failed, but for the line on that."""
    monkeypatch.setattr(native, "library", lambda: None)


def noted(progress: Progress, monkeypatch, *every: dict[str, str], rank: int = 0) -> list[str]:
    """What is said where the processes compute with `every`."""
    said: list[str] = []
    monkeypatch.setattr(devices, "gather_object", lambda mine: list(every) or mine)
    accelerator = SimpleNamespace(device=CPU, is_main_process=rank == 0)
    note_computation(progress, CONFIG, accelerator, torch.float32, said.append)
    return said


@pytest.mark.skipif(native.library() is None, reason="no g++ on Linux to compile the kernel")
def test_the_kernel_is_named_by_what_it_was_made_from(monkeypatch):
    here = computation_of(CONFIG, CPU, torch.float32)["attention"]
    assert here.startswith("compiled kernel ")
    monkeypatch.setattr("nystromformer.attention.build._cpu", lambda: "another")
    assert computation_of(CONFIG, CPU, torch.float32)["attention"] != here


def test_what_changes_bits_shows(monkeypatch):
    before = computation_of(CONFIG, CPU, torch.float32)

    def changed(config=CONFIG, dtype=torch.float32) -> set[str]:
        now = computation_of(config, CPU, dtype)
        return {part for part in before if now[part] != before[part]}

    assert changed() == set()
    assert changed(dtype=torch.bfloat16) == {"products"}
    assert changed(NystromformerConfig(**SHAPE, attention="softmax")) == {"attention"}
    with monkeypatch.context() as patch:
        patch.setattr("nystromformer.attention.nystrom.DEFAULT_IMPLEMENTATION", "composed")
        assert changed() == {"attention"}
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        assert changed() == {"oneDNN"}
    with monkeypatch.context() as patch:
        patch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
        assert changed() == {"oneDNN"}
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert changed() == {"threads"}
    finally:
        torch.set_num_threads(threads)
    without_kernel(monkeypatch)
    assert computation_of(CONFIG, CPU, torch.float32)["attention"] == BY_OPERATORS


def test_a_run_that_begins_or_was_never_told_says_nothing(monkeypatch):
    new, old = Progress(), Progress(step=7)  # a checkpoint of before this was written down
    for progress in (new, old):
        assert noted(progress, monkeypatch) == []
        assert progress.computation["attention"]


def test_processes_that_differ_are_told_in_one_line_a_kind(monkeypatch):
    ours = {"attention": "compiled kernel 1", "threads": "2"}
    slow = {"attention": BY_OPERATORS, "threads": "2"}
    every = [ours, slow, ours, slow, {**ours, "threads": "1"}]
    progress = Progress()
    assert noted(progress, monkeypatch, *every) == [
        f"processes 1, 3 of 5 compute with attention {BY_OPERATORS} (process 0: compiled kernel 1): their "
        "numbers are equal within rounding, not bit for bit",
        "process 4 of 5 computes with threads 1 (process 0: 2): its numbers are equal within rounding, not "
        "bit for bit",
    ]
    assert progress.computation == ours
    assert noted(Progress(), monkeypatch, *every, rank=1) == []


@pytest.mark.skipif(native.library() is None, reason="no g++ on Linux to compile the kernel")
def test_a_resume_with_another_implementation_says_so_in_one_line(overrides, tmp_path, capsys, monkeypatch):
    changes = [*overrides, SUITS_THE_KERNEL]
    changes += ["training.steps=4", "training.checkpoint_every=2", "training.validate_every=4"]
    assert main(["pretrain", *changes]) == 0
    checkpoints = tmp_path / "runs/smoke/checkpoints"
    before = json.loads((checkpoints / "step-2/state.json").read_text())["computation"]["attention"]
    assert before.startswith("compiled kernel ")

    def resume() -> list[str]:
        shutil.rmtree(checkpoints / "step-4")
        capsys.readouterr()
        assert main(["pretrain", *changes]) == 0
        return [line for line in capsys.readouterr().out.splitlines() if "computed" in line]

    assert resume() == []
    without_kernel(monkeypatch)
    assert resume() == [
        f"from step 2 on computed with attention {BY_OPERATORS} (before: {before}): equal within rounding, "
        "not bit for bit"
    ]
    state = json.loads((checkpoints / "step-4/state.json").read_text())
    assert state["computation"]["attention"] == BY_OPERATORS
