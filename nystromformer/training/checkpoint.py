"""Checkpoints that are complete or absent.

    checkpoints/step-N/
        model.safetensors    weights, float32
        optimizer.pt         moments of AdamW
        random-R.pt          random state of process R (dropout)
        state.json           step, seconds trained, SHA-256 of every other file; written last

A checkpoint is written into a hidden folder beside its place, flushed to the disk, then renamed; `latest`
and `best` are replaced after that, and other checkpoints are removed last. A process killed at any moment
leaves the previous checkpoint in use, and so does a disk that fills up.

`latest` says where a run goes on: whoever writes an earlier step into it goes back there, and the first
checkpoint after that removes those of the steps that were given up. `best` is for people.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nystromformer.errors import UserError
from nystromformer.files import sha256_of_file, write_atomically
from nystromformer.training.parallel import load_moments, load_weights, whole_moments, whole_weights

LATEST = "latest"
"""A file beside the checkpoints with the name of the one to go on from."""


@dataclass
class Progress:
    """How far a run is."""

    step: int = 0
    """Optimizer steps done."""
    seconds: float = 0.0
    """Time since the first step, over all sessions of the run."""
    finished: bool = False
    """Whether the last step, or the last minute, is over."""
    skipped: int = 0
    """Steps that changed nothing, because a loss or gradient was not finite."""
    data: str = ""
    """Name of the prepared data that the run reads; it says what the data was made from."""
    computation: dict[str, str] = field(default_factory=dict)
    """What computes the run, on its main process; see `computation`."""


class CheckpointNotWritten(UserError):
    """The disk took no checkpoint; those before are as they were."""


def save_checkpoint(
    folder: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    accelerator: Accelerator,
    *,
    keep: int,
    keep_best: bool = False,
    validation_loss: float | None = None,
) -> None:
    """Write `folder/step-N` on all processes, point `latest` to it and prune all but `keep`.

    Args:
        keep_best: spare from pruning the checkpoint with the lowest `validation_loss`.
        validation_loss: measured at this very step; None where there was no validation.

    Raises:
        CheckpointNotWritten: on every process, when one could not write. Nothing half is left.
    """
    final = folder / f"step-{progress.step}"
    beside = folder / f".step-{progress.step}.tmp"
    writes = accelerator.is_main_process
    weights, moments = whole_weights(model, keep=writes), whole_moments(optimizer, keep=writes)

    def begin() -> None:
        if writes:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)

    def write_random_state() -> None:
        _save(_random_state(), beside / f"random-{accelerator.process_index}.pt")

    def write_the_rest() -> None:
        if not writes:
            return
        save_file(weights, beside / "model.safetensors")
        _save(moments, beside / "optimizer.pt")
        checksums = {file.name: sha256_of_file(file) for file in sorted(beside.iterdir())}
        for file in beside.iterdir():
            _flush(file)
        state = {**asdict(progress), "validation_loss": validation_loss, "sha256": checksums}
        write_atomically(beside / "state.json", json.dumps(state, indent=2) + "\n")
        _flush(beside)
        if final.exists():  # an earlier session wrote it and was stopped before `latest` moved
            shutil.rmtree(final)
        beside.rename(final)
        _flush(folder)
        write_atomically(folder / LATEST, final.name + "\n")
        _prune(folder, keep, keep_best, newest=progress.step)

    for write in (begin, write_random_state, write_the_rest):
        _on_all(accelerator, write, beside)


def load_latest(
    folder: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
) -> Progress:
    """Load the checkpoint to go on from; a fresh Progress where there is none. For a process alone.

    Raises:
        UserError: see `whole_checkpoint` and `load_checkpoint`.
    """
    return load_checkpoint(whole_checkpoint(folder), model, optimizer, accelerator)


def whole_checkpoint(folder: Path) -> Path | None:
    """The checkpoint to go on from: `latest`, or where that is damaged the newest whole one before it.

    Every file of it is read. One process looks, so that all take the same.

    Raises:
        UserError: checkpoints exist and none of them is whole.
    """
    broken: list[str] = []
    newest = latest_step(folder)
    steps = saved_steps(folder)
    # One that `latest` does not know of yet comes last: it was given up, or it is the only one.
    for step in sorted(steps, key=lambda step: (step <= (newest or 0), step), reverse=True):
        complaint = damage_of(folder / f"step-{step}")
        if complaint is None:
            return folder / f"step-{step}"
        broken.append(complaint)
        warnings.warn(f"{complaint}: going back to the checkpoint before", stacklevel=2)
    if broken:
        raise UserError(f"{broken[0]}, and no earlier one is whole: remove {folder.parent} to start again")
    return None


def load_checkpoint(
    checkpoint: Path | None,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
) -> Progress:
    """Load a whole checkpoint into this process; a fresh Progress where there is none.

    Raises:
        UserError: it is of another model.
    """
    if checkpoint is None:
        return Progress()
    try:
        load_weights(model, load_file(checkpoint / "model.safetensors"))
        load_moments(optimizer, _load(checkpoint / "optimizer.pt"))
    except (RuntimeError, ValueError, LookupError):  # the file is whole, so the model differs
        raise UserError(
            f"{checkpoint} is of a model of another shape: write the model settings that it was trained "
            "with, or name=OTHER for a new run"
        ) from None
    state = json.loads((checkpoint / "state.json").read_text())
    random_state = checkpoint / f"random-{accelerator.process_index}.pt"
    # For what the file does not hold: a run that goes on with more processes, or on another device.
    torch.manual_seed(state["step"] * 1_000_003 + accelerator.process_index)
    if random_state.exists():
        _restore_random_state(_load(random_state))
    return Progress(**{part.name: state[part.name] for part in fields(Progress) if part.name in state})


def latest_step(folder: Path) -> int | None:
    """The step that `latest` names, or where it names none that is there the newest; None without any."""
    steps = saved_steps(folder)
    try:
        named = int((folder / LATEST).read_text().strip().removeprefix("step-"))
    except (OSError, ValueError):
        named = -1
    return named if named in steps else max(steps, default=None)


def saved_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, oldest first."""
    names = (path.name.removeprefix("step-") for path in folder.glob("step-*"))
    return sorted(int(name) for name in names if name.isdigit())


def _on_all(accelerator: Accelerator, write: Callable[[], None], beside: Path) -> None:
    """Write on every process, and wait for all; where one fails, all clean up and raise."""
    why = ""
    try:
        write()
    except (OSError, SafetensorError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
    failed = accelerator.reduce(torch.tensor(float(bool(why)), device=accelerator.device), "sum")
    if not failed.item():
        return
    if accelerator.is_main_process:
        shutil.rmtree(beside, ignore_errors=True)
    accelerator.wait_for_everyone()
    newest = latest_step(beside.parent)
    raise CheckpointNotWritten(
        f"cannot write the checkpoint {beside.name[1:-4]} ({why or 'on another process'}); "
        + ("there is none yet" if newest is None else f"the newest is step-{newest}")
        + f": free space for {beside.parent}, then the same command goes on from there"
    )


def damage_of(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        checksums = json.loads((checkpoint / "state.json").read_text())["sha256"]
        for name, expected in checksums.items():
            if sha256_of_file(checkpoint / name) != expected:
                return f"{checkpoint / name} is damaged (its checksum differs)"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{checkpoint} is not whole ({type(error).__name__}: {error})"
    return None


def _prune(folder: Path, keep: int, keep_best: bool, *, newest: int) -> None:
    given_up = [step for step in saved_steps(folder) if step > newest]
    steps = [step for step in saved_steps(folder) if step <= newest]
    best = _best(folder, steps) if keep_best else None
    if best is not None:
        write_atomically(folder / "best", f"step-{best}\n")
    for step in [*given_up, *steps[:-keep]]:
        if step != best:
            shutil.rmtree(folder / f"step-{step}", ignore_errors=True)
    for leftover in folder.glob(".step-*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)


def _best(folder: Path, steps: list[int]) -> int | None:
    """The step of the checkpoint with the lowest validation loss."""
    losses = {}
    for step in steps:
        try:
            loss = json.loads((folder / f"step-{step}" / "state.json").read_text()).get("validation_loss")
        except (OSError, ValueError, AttributeError):  # a damaged checkpoint is not the best
            continue
        if loss is not None:
            losses[step] = loss
    return min(losses, key=lambda step: losses[step], default=None)


def _save(content: Any, path: Path) -> None:
    """torch.save through a file of Python's own, which names the reason when the disk refuses."""
    with path.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's writer complains about the bytes it could not write
            reason = error.__context__
            raise (reason if isinstance(reason, OSError) else OSError(str(error))) from None


def _load(path: Path) -> Any:
    """To ordinary memory, whose name does not vary; the optimizer moves its moments itself."""
    return torch.load(path, map_location="cpu", weights_only=True)


def _random_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _restore_random_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _flush(path: Path) -> None:
    """Have the operating system write a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
