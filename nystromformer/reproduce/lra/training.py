"""One cell of the table: a model of one attention trained and measured on one task, with one seed.

    RUNS/lra/TASK_ATTENTION_seedS_HASH/    HASH of all that the cell's figures depend on
        cell.json       what was asked and measured; written last, so a cell is finished or not
        metrics.jsonl   loss and accuracy by step
        checkpoints/    see training.checkpoint; gone once the cell is finished

A killed cell goes on from its last checkpoint, a finished one is only read.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import statistics
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from nystromformer.data.layout import Batch
from nystromformer.errors import UserError
from nystromformer.files import held, write_atomically
from nystromformer.reproduce.lra.examples import LraTask
from nystromformer.reproduce.lra.model import LraClassifier, configuration
from nystromformer.settings import TrainingSettings
from nystromformer.settings.identity import identity
from nystromformer.settings.scale import LraScale
from nystromformer.tasks.batches import TaskBatches, ordered_batches
from nystromformer.tasks.task import Encoded, padded
from nystromformer.training.checkpoint import load_latest, save_checkpoint
from nystromformer.training.computation import note_computation
from nystromformer.training.devices import accelerator_of, autocast, on_device, precision
from nystromformer.training.metrics import MetricsLog
from nystromformer.training.optimizer import build_optimizer, learning_rate, set_learning_rate


@dataclass(frozen=True)
class Cell:
    """What one training is of."""

    task: str
    attention: str
    seed: int

    def identity(self, scale: LraScale, device: str) -> dict[str, Any]:
        """All that its figures depend on."""
        return {**asdict(self), "device": device, **identity(scale, of=self.task)}

    def folder(self, runs: str, scale: LraScale, device: str, data: str) -> Path:
        """Its place: another configuration has another one, and so have other examples.

        Args:
            data: the content of its examples. A cell of an earlier version, whose place does not tell them,
                is taken where there is none that does.
        """
        place = self._place(runs, {**self.identity(scale, device), "data": data})
        earlier = self._place(runs, self.identity(scale, device))
        return earlier if earlier.exists() and not place.exists() else place

    def _place(self, runs: str, of: dict[str, Any]) -> Path:
        text = json.dumps(of, sort_keys=True)
        digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
        return Path(runs) / "lra" / f"{self.task}_{self.attention}_seed{self.seed}_{digest}"


def finished(folder: Path) -> dict[str, Any] | None:
    """What a finished cell measured; None for one that is not."""
    try:
        return json.loads((folder / "cell.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{folder / 'cell.json'} is no JSON: delete the folder {folder}") from error


def forget_cell(folder: Path) -> None:
    """Remove what was measured or begun; raises Held where another process trains it."""
    if folder.exists():
        with _held(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _held(folder: Path) -> AbstractContextManager[Path]:
    return held(folder / "cell.lock", str(folder), "write runs_folder=OTHER")


def train_cell(
    cell: Cell, task: LraTask, scale: LraScale, device: torch.device, folder: Path
) -> dict[str, Any]:
    """Train to the last step, measure on the test examples, write and return cell.json.

    Raises:
        UserError: the folder cannot be written, another process trains the cell, or the loss stopped being a
            number.
    """
    with _held(folder):
        return finished(folder) or _train_cell(cell, task, scale, device, folder)


def _train_cell(
    cell: Cell, task: LraTask, scale: LraScale, device: torch.device, folder: Path
) -> dict[str, Any]:
    training = _training_settings(cell, scale)
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = accelerator_of(cpu=device.type == "cpu")
    torch.manual_seed(cell.seed)
    model = LraClassifier(configuration(cell.attention, task, scale)).to(device)
    optimizer = build_optimizer(model, training)
    checkpoints, log = folder / "checkpoints", MetricsLog(folder / "metrics.jsonl")
    progress = load_latest(checkpoints, model, optimizer, accelerator)
    log.rewind(progress.step)
    batches = _batches(task.train, training)
    shown = _spread(task.test, scale.curve_examples)
    # On a CPU all in float32: of the mechanisms, some are much slower in bf16 there.
    dtype = precision(training, device) if device.type == "cuda" else torch.float32
    note_computation(progress, model.encoder.config, accelerator, dtype, partial(print, flush=True))
    losses: list[torch.Tensor] = []
    mark = time.perf_counter()
    while progress.step < training.steps:
        set_learning_rate(optimizer, learning_rate(progress.step, training))
        losses.append(_step(model, optimizer, batches, progress.step, device, dtype))
        progress.step += 1
        last = progress.step == training.steps
        if progress.step % scale.curve_every == 0 or last:
            loss = float(torch.stack(losses).mean())  # waits for the device, so the clock is right
            progress.seconds += time.perf_counter() - mark
            if loss != loss:
                raise UserError(f"{folder.name}: the loss is no number after step {progress.step:,}")
            correct = accuracy(model, task.test if last else shown, scale, device, dtype)
            log.append(
                {"kind": "validation", "step": progress.step, "loss": loss, "accuracy": correct,
                 "seconds": progress.seconds, "steps": len(losses)}
            )  # fmt: skip
            print(
                f"{cell.task}, {cell.attention}, seed {cell.seed}: step {progress.step:,} of "
                f"{training.steps:,}, loss {loss:.3f}, accuracy {correct:.3f}, {progress.seconds:.0f} s",
                flush=True,
            )
            losses.clear()
            if progress.step % scale.checkpoint_every < scale.curve_every and not last:
                save_checkpoint(checkpoints, model, optimizer, progress, accelerator, keep=1)
            mark = time.perf_counter()
    measured = _measured(cell, model, log, scale, device)
    write_atomically(folder / "cell.json", json.dumps(measured, indent=1) + "\n")
    shutil.rmtree(checkpoints, ignore_errors=True)
    return measured


@torch.no_grad()
def accuracy(
    model: LraClassifier, examples: Encoded, scale: LraScale, device: torch.device, dtype: torch.dtype
) -> float:
    """Share of the examples whose likeliest class is theirs; the model goes on training afterwards."""
    assert examples.labels is not None
    model.eval()
    right = torch.zeros((), device=device)
    for rows, batch in ordered_batches(examples, scale.batch_size, partial(padded, pad_token_id=0)):
        labels = torch.tensor([examples.labels[row] for row in rows], device=device)
        batch = on_device(batch, device)
        with autocast(dtype, device):
            logits = model(batch["input_ids"], batch.get("attention_mask"))
        right += (logits.argmax(dim=-1) == labels).sum()
    model.train()
    return right.item() / len(examples)


def _training_settings(cell: Cell, scale: LraScale) -> TrainingSettings:
    steps = scale.listops_steps if cell.task == "listops" else scale.text_steps
    return TrainingSettings(
        steps=steps,
        global_batch_size=scale.batch_size,
        learning_rate=scale.learning_rate,
        warmup_steps=round(scale.warmup_share * steps),
        weight_decay=scale.weight_decay,
        seed=cell.seed,
    )


def _batches(train: Encoded, training: TrainingSettings) -> TaskBatches:
    return TaskBatches(
        train,
        _labelled,
        batch_size=training.global_batch_size,
        micro_batch_size=None,
        seed=training.seed,
        steps=training.steps,
    )


def _labelled(encoded: Encoded, rows: Sequence[int]) -> Batch:
    assert encoded.labels is not None
    labels = torch.tensor([encoded.labels[row] for row in rows], dtype=torch.int64)
    return {**padded(encoded, rows, 0), "labels": labels}


def _step(
    model: LraClassifier,
    optimizer: torch.optim.Optimizer,
    batches: TaskBatches,
    step: int,
    device: torch.device,
    dtype: torch.dtype,
) -> torch.Tensor:
    (batch,) = batches.of_step(step)
    batch = on_device(batch, device)
    with autocast(dtype, device):
        logits = model(batch["input_ids"], batch.get("attention_mask"))
    loss = F.cross_entropy(logits.float(), batch["labels"])
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.detach()


def _measured(
    cell: Cell, model: LraClassifier, log: MetricsLog, scale: LraScale, device: torch.device
) -> dict[str, Any]:
    events = log.events("validation")
    starts = [0.0, *(event["seconds"] for event in events)]
    speeds = [
        (event["seconds"] - start) / event["steps"] for start, event in zip(starts, events, strict=False)
    ]
    return {
        **cell.identity(scale, device.type),
        "accuracy": events[-1]["accuracy"],
        "steps": events[-1]["step"],
        "seconds": events[-1]["seconds"],
        "milliseconds_per_step": statistics.median(speeds) * 1000,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "curve": [{key: event[key] for key in ("step", "loss", "accuracy")} for event in events],
    }


def _spread(examples: Encoded, count: int) -> Encoded:
    """At most `count` examples evenly over all of them, which may be sorted by class: for the curve."""
    assert examples.labels is not None
    chosen = np.linspace(0, len(examples) - 1, min(count, len(examples))).round().astype(int)
    return Encoded(
        [examples.input_ids[row] for row in chosen],
        None,
        [examples.labels[row] for row in chosen],
        examples.lengths[chosen],
        examples.full_lengths[chosen],
    )
