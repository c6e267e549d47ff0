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
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nystromformer.data.layout import Batch
from nystromformer.errors import UserError
from nystromformer.files import held, write_atomically
from nystromformer.model import NystromformerConfig
from nystromformer.reproduce.lra.examples import LraTask
from nystromformer.reproduce.lra.model import LraClassifier, configuration
from nystromformer.reproduce.runs import note_earlier
from nystromformer.settings import TrainingSettings
from nystromformer.settings.identity import identity
from nystromformer.settings.scale import LraScale
from nystromformer.tasks.batches import TaskBatches, ordered_batches
from nystromformer.tasks.task import Encoded, padded
from nystromformer.training.checkpoint import whole_checkpoint
from nystromformer.training.devices import accelerator_of, on_device
from nystromformer.training.flops import training_flops
from nystromformer.training.loop import Run, train
from nystromformer.training.metrics import MetricsLog
from nystromformer.training.objective import Measured, Measurement, every
from nystromformer.training.signals import StopRequest
from nystromformer.training.together import Together


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
        found = json.loads((folder / "cell.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{folder / 'cell.json'} is no JSON: delete the folder {folder}") from error
    note_earlier(found.get("seconds", 0.0))
    return found


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
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = accelerator_of(cpu=device.type == "cpu")
    training = _training_settings(cell, scale, device)
    torch.manual_seed(cell.seed)
    model = LraClassifier(configuration(cell.attention, task, scale)).to(device)
    config, steps = model.encoder.config, training.steps
    run = Run(
        training,
        folder,
        model,
        config,
        Classification(config),
        _batches(task.train, training),
        accelerator,
        Together(accelerator),
        saved=whole_checkpoint(folder / "checkpoints"),
        logs_after=every(scale.curve_every),
        saves_after=lambda step: (
            step % scale.curve_every == 0 and step % scale.checkpoint_every < scale.curve_every
        ),
        label=f"{cell.task}, {cell.attention}, seed {cell.seed}",
        remedy="it is the mechanism's own answer to this recipe",
    )
    shown = _spread(task.test, scale.curve_examples)

    def measured(step: int) -> Measured:
        examples = task.test if step == steps else shown
        share = accuracy(model, examples, scale, device, run.autocast)
        return Measured({"accuracy": share}, f"step {step:,} of {steps:,}: accuracy {share:.3f}")

    run.measurements = [Measurement("validation", every(scale.curve_every), measured)]
    with StopRequest() as stop:
        train(run, stop)
    result = _measured(cell, model, run.metrics, scale, device)
    write_atomically(folder / "cell.json", json.dumps(result, indent=1) + "\n")
    shutil.rmtree(run.checkpoints, ignore_errors=True)
    return result


class Classification:
    """The objective: cross-entropy, the mean over the rows."""

    losses = ("loss",)

    def __init__(self, config: NystromformerConfig) -> None:
        self._config = config

    def counts(self, batch: Batch) -> tuple[int]:
        return (len(batch["labels"]),)

    def means(self, model: torch.nn.Module, batch: Batch) -> tuple[Tensor]:
        logits = model(batch["input_ids"], batch.get("attention_mask"))
        return (F.cross_entropy(logits.float(), batch["labels"]),)

    def flops(self, lengths: NDArray[np.int64], counts: list[int]) -> float:
        return training_flops(self._config, lengths, predicted=0)


@torch.no_grad()
def accuracy(
    model: LraClassifier, examples: Encoded, scale: LraScale, device: torch.device, autocast: torch.autocast
) -> float:
    """Share of the examples whose likeliest class is theirs; the model goes on training afterwards."""
    assert examples.labels is not None
    model.eval()
    right = torch.zeros((), device=device)
    for rows, batch in ordered_batches(examples, scale.batch_size, partial(padded, pad_token_id=0)):
        labels = torch.tensor([examples.labels[row] for row in rows], device=device)
        batch = on_device(batch, device)
        with autocast:
            logits = model(batch["input_ids"], batch.get("attention_mask"))
        right += (logits.argmax(dim=-1) == labels).sum()
    model.train()
    return right.item() / len(examples)


def _training_settings(cell: Cell, scale: LraScale, device: torch.device) -> TrainingSettings:
    steps = scale.listops_steps if cell.task == "listops" else scale.text_steps
    return TrainingSettings(
        steps=steps,
        global_batch_size=scale.batch_size,
        learning_rate=scale.learning_rate,
        warmup_steps=round(scale.warmup_share * steps),
        weight_decay=scale.weight_decay,
        seed=cell.seed,
        # On a CPU all in float32: of the mechanisms, some are much slower in bf16 there.
        precision="auto" if device.type == "cuda" else "float32",
        keep_checkpoints=1,
        keep_best=False,
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


def _measured(
    cell: Cell, model: LraClassifier, log: MetricsLog, scale: LraScale, device: torch.device
) -> dict[str, Any]:
    events, laps = log.events("validation"), log.events("train")
    # An earlier version wrote loss and seconds beside the accuracy, and no laps.
    earlier = [event for event in events if "loss" in event]
    losses = {event["step"]: event["loss"] for event in [*earlier, *laps]}
    before, seconds = (earlier[-1]["step"], earlier[-1]["seconds"]) if earlier else (0, 0.0)
    ends = [before, *(lap["step"] for lap in laps)]
    speeds = [lap["steps_per_second"] for lap in laps]
    return {
        **cell.identity(scale, device.type),
        "accuracy": events[-1]["accuracy"],
        "steps": events[-1]["step"],
        "seconds": seconds
        + sum((end - start) / speed for start, end, speed in zip(ends, ends[1:], speeds, strict=False)),
        "milliseconds_per_step": 1000 / statistics.median(speeds),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "curve": [
            {"step": event["step"], "loss": losses[event["step"]], "accuracy": event["accuracy"]}
            for event in events
        ],
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
