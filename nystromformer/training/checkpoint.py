"""Checkpoints that are complete or absent.

    checkpoints/step-N/
        model.safetensors    weights, float32
        optimizer.pt         moments of AdamW
        random-R.pt          random state of process R (dropout)
        state.json           step, seconds trained, SHA-256 of every other file; written last

A checkpoint is written into a hidden folder beside its place, flushed to the disk, then renamed;
`latest` is replaced after that, and old checkpoints are removed last. A process killed at any moment
leaves the previous checkpoint in use.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model

from nystromformer.errors import UserError
from nystromformer.training.run_folder import write_atomically


@dataclass
class Progress:
    """How far a run is."""

    step: int = 0
    """Optimizer steps done."""
    seconds: float = 0.0
    """Time since the first step, over all sessions of the run."""
    finished: bool = False
    """Whether the last step, or the last minute, is over."""


def save_checkpoint(
    folder: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    accelerator: Accelerator,
    *,
    keep: int,
) -> None:
    """Write `folder/step-N` on all processes, point `latest` to it and prune all but `keep`."""
    final = folder / f"step-{progress.step}"
    beside = folder / f".step-{progress.step}.tmp"
    if accelerator.is_main_process:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
    accelerator.wait_for_everyone()
    torch.save(_random_state(), beside / f"random-{accelerator.process_index}.pt")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        save_model(model, str(beside / "model.safetensors"))
        torch.save(optimizer.state_dict(), beside / "optimizer.pt")
        checksums = {file.name: _sha256(file) for file in sorted(beside.iterdir())}
        for file in beside.iterdir():
            _flush(file)
        state = {**asdict(progress), "sha256": checksums}
        write_atomically(beside / "state.json", json.dumps(state, indent=2) + "\n")
        _flush(beside)
        if final.exists():  # an earlier session wrote it and was stopped before `latest` moved
            shutil.rmtree(final)
        beside.rename(final)
        _flush(folder)
        write_atomically(folder / "latest", final.name + "\n")
        _prune(folder, keep)
    accelerator.wait_for_everyone()


def load_latest(
    folder: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
) -> Progress:
    """Load the newest checkpoint that is whole; a fresh Progress where there is none.

    Raises:
        UserError: checkpoints exist and none of them is whole, or the newest is of another model.
    """
    steps = saved_steps(folder)
    broken: list[str] = []
    for step in reversed(steps):
        checkpoint = folder / f"step-{step}"
        complaint = _complaint(checkpoint)
        if complaint:
            broken.append(complaint)
            if accelerator.is_main_process:
                warnings.warn(f"{complaint}: going back to the checkpoint before", stacklevel=2)
            continue
        try:
            load_model(model, str(checkpoint / "model.safetensors"), device=str(accelerator.device))
            optimizer.load_state_dict(
                torch.load(checkpoint / "optimizer.pt", map_location=accelerator.device, weights_only=True)
            )
        except (RuntimeError, ValueError):  # the file is whole, so it is the model that differs
            raise UserError(
                f"{checkpoint} is of a model of another shape: write the model settings that it was trained "
                "with, or name=OTHER for a new run"
            ) from None
        random_state = checkpoint / f"random-{accelerator.process_index}.pt"
        if random_state.exists():
            _restore_random_state(torch.load(random_state, weights_only=True))
        else:  # the run goes on with more processes than it had
            torch.manual_seed(step * 1_000_003 + accelerator.process_index)
        state = json.loads((checkpoint / "state.json").read_text())
        return Progress(state["step"], state["seconds"], state["finished"])
    if broken:
        raise UserError(f"{broken[0]}, and no earlier one is whole: remove {folder.parent} to start again")
    return Progress()


def saved_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, oldest first."""
    names = (path.name.removeprefix("step-") for path in folder.glob("step-*"))
    return sorted(int(name) for name in names if name.isdigit())


def _complaint(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        checksums = json.loads((checkpoint / "state.json").read_text())["sha256"]
        for name, expected in checksums.items():
            if _sha256(checkpoint / name) != expected:
                return f"{checkpoint / name} is damaged (its checksum differs)"
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        return f"{checkpoint} is not whole ({type(error).__name__}: {error})"
    return None


def _prune(folder: Path, keep: int) -> None:
    for step in saved_steps(folder)[:-keep]:
        shutil.rmtree(folder / f"step-{step}", ignore_errors=True)
    for leftover in folder.glob(".step-*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)


def _random_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _restore_random_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    """Have the operating system write a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
