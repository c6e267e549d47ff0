"""One cell of the table: a model of one attention trained and measured on one task, with one seed.

    RUNS/lra/TASK_ATTENTION_seedS_HASH/    HASH of all that the cell's figures depend on
        cell.json       what was asked and measured; written last, so a cell is finished or not
        metrics.jsonl   loss, and accuracy on the validation examples, by step
        checkpoints/    see training.checkpoint; gone once the cell is finished
        masked/         of a pretrained cell: the same of its self-pretraining, and the encoder it made

A killed cell goes on from its last checkpoint, a finished one is only read.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from nystromformer.data.layout import Batch
from nystromformer.data.stateless_random import row_keys
from nystromformer.errors import UserError
from nystromformer.files import held, write_atomically
from nystromformer.model import NystromformerConfig, NystromformerForPreTraining
from nystromformer.reproduce.lra.model import LraClassifier, configuration
from nystromformer.reproduce.lra.pretraining import (
    MaskedBatches,
    held_out,
    masked,
    masking,
    texts_of,
)
from nystromformer.reproduce.lra.task import LraTask
from nystromformer.reproduce.runs import note_earlier
from nystromformer.settings import TrainingSettings
from nystromformer.settings.identity import identity
from nystromformer.settings.scale import LRA_PIXELS, LraScale
from nystromformer.tasks.batches import TaskBatches, ordered_batches
from nystromformer.tasks.task import Encoded
from nystromformer.training.checkpoint import best_step, whole_checkpoint
from nystromformer.training.devices import accelerator_of, on_device
from nystromformer.training.flops import training_flops
from nystromformer.training.loop import Run, train
from nystromformer.training.metrics import MetricsLog
from nystromformer.training.objective import Batches, Measured, Measurement, Objective, every
from nystromformer.training.pretraining import Pretraining
from nystromformer.training.signals import StopRequest
from nystromformer.training.together import Together

_MASKED_ROWS = 256
"""Validation examples whose masked tokens are predicted."""


@dataclass(frozen=True)
class Cell:
    """What one training is of."""

    task: str
    attention: str
    seed: int
    pretrained: bool = False
    """Whether masked tokens of the task's inputs come before the task."""

    def identity(self, scale: LraScale, device: str) -> dict[str, Any]:
        """All that its figures depend on."""
        settings = identity(scale, of=self.task)
        if not self.pretrained:
            settings = {key: value for key, value in settings.items() if not key.startswith("pretrain_")}
        return {**asdict(self), "device": device, **settings}

    def folder(self, runs: str, scale: LraScale, device: str, data: str) -> Path:
        """Its place: another configuration has another one, and so have other examples.

        Args:
            data: the content of its examples.
        """
        text = json.dumps({**self.identity(scale, device), "data": data}, sort_keys=True)
        digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
        told = "_pretrained" if self.pretrained else ""
        return Path(runs) / "lra" / f"{self.task}_{self.attention}{told}_seed{self.seed}_{digest}"

    @property
    def label(self) -> str:
        return f"{self.task}, {self.attention}, seed {self.seed}"


def finished(folder: Path) -> dict[str, Any] | None:
    """What a finished cell measured; None for one that is not."""
    try:
        found = json.loads((folder / "cell.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{folder / 'cell.json'} is no JSON: delete the folder {folder}") from error
    note_earlier(found.get("seconds", 0.0) + found.get("masked", {}).get("seconds", 0.0))
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
        if found := finished(folder):
            return found
        before = _pretrain(cell, task, scale, device, folder / "masked") if cell.pretrained else None
        return _train_cell(cell, task, scale, device, folder, before)


def _pretrain(cell: Cell, task: LraTask, scale: LraScale, device: torch.device, folder: Path) -> Path:
    """Train on masked tokens, or go on; the file with the encoder's weights."""
    encoder = folder / "encoder.safetensors"
    if encoder.exists():
        return encoder
    training = _training_settings(cell, scale, device, masked=True)
    torch.manual_seed(cell.seed)
    model = NystromformerForPreTraining(configuration(cell.attention, task, scale))
    share = scale.pretrain_masked
    batches = MaskedBatches(
        task, share, batch_size=training.global_batch_size, seed=cell.seed, steps=training.steps
    )
    objective = Pretraining(model.config, sentence_order=False)
    shown = _masked_validation(task, share, training.global_batch_size)
    run = _trained(
        cell, scale, device, folder, training, model, objective, batches,
        lambda _, run: held_out(model, shown, run),
    )  # fmt: skip
    weights = model.nystromformer.state_dict()
    kept = {name: tensor.cpu() for name, tensor in weights.items() if not name.startswith("pooler.")}
    beside = encoder.with_suffix(".part")
    save_file(kept, beside)
    beside.replace(encoder)
    shutil.rmtree(run.checkpoints, ignore_errors=True)
    return encoder


def _masked_validation(task: LraTask, share: float, size: int) -> list[Batch]:
    rows = range(min(_MASKED_ROWS, len(task.validation)))
    mask, keys = masking(task, share), row_keys(0, 0, np.array(rows))
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    return [masked(texts_of(task.validation, part), mask, keys[part.start : part.stop]) for part in parts]


def _train_cell(
    cell: Cell,
    task: LraTask,
    scale: LraScale,
    device: torch.device,
    folder: Path,
    encoder: Path | None,
) -> dict[str, Any]:
    training = _training_settings(cell, scale, device)
    torch.manual_seed(cell.seed)
    config = configuration(cell.attention, task, scale)
    model = LraClassifier(config, task.texts, pooled_norm=scale.pooled_norm)
    if encoder:
        model.encoder.load_state_dict(load_file(encoder))
    steps = training.steps
    batches = TaskBatches(
        task.train,
        _labelled,
        batch_size=training.global_batch_size,
        micro_batch_size=None,
        seed=training.seed,
        steps=steps,
    )
    share_right = partial(accuracy, model, size=training.global_batch_size, device=device)

    def measured(step: int, run: Run) -> Measured:
        share = share_right(task.validation, autocast=run.autocast)
        told = f"step {step:,} of {steps:,}: accuracy {share:.3f} on validation examples"
        return Measured({"accuracy": share}, told, best_by=-share)

    objective = Classification(config)
    run = _trained(cell, scale, device, folder, training, model, objective, batches, measured)
    best = best_step(run.checkpoints)
    model.load_state_dict(load_file(run.checkpoints / f"step-{best}" / "model.safetensors"))
    result = {
        **cell.identity(scale, device.type),
        "accuracy": share_right(task.test, autocast=run.autocast),
        "best_step": best,
        "steps": steps,
        **_times(run.metrics),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "curve": _curve(run.metrics, "accuracy"),
    }
    if encoder:
        log = MetricsLog(encoder.with_name("metrics.jsonl"))
        curve = _curve(log, "mlm_accuracy", "mlm_loss")
        result["masked"] = {"steps": curve[-1]["step"], **_times(log), "curve": curve}
    write_atomically(folder / "cell.json", json.dumps(result, indent=1) + "\n")
    shutil.rmtree(run.checkpoints, ignore_errors=True)
    return result


def _trained(
    cell: Cell,
    scale: LraScale,
    device: torch.device,
    folder: Path,
    training: TrainingSettings,
    model: LraClassifier | NystromformerForPreTraining,
    objective: Objective,
    batches: Batches,
    measured: Callable[[int, Run], Measured],
) -> Run:
    """A training of the one loop, done or gone on with; `measured` is of the validation examples."""
    folder.mkdir(parents=True, exist_ok=True)
    model.to(device)
    accelerator = accelerator_of(cpu=device.type == "cpu")
    config = model.encoder.config if isinstance(model, LraClassifier) else model.config
    due = every(scale.curve_every)
    run = Run(
        training,
        folder,
        model,
        config,
        objective,
        batches,
        accelerator,
        Together(accelerator),
        saved=whole_checkpoint(folder / "checkpoints"),
        logs_after=due,
        saves_after=due,
        label=cell.label + (", masked tokens" if isinstance(objective, Pretraining) else ""),
        remedy="it is the mechanism's own answer to this recipe",
    )
    run.measurements = [Measurement("validation", due, lambda step: measured(step, run))]
    with StopRequest() as stop:
        train(run, stop)
    return run


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
    model: LraClassifier, examples: Encoded, *, size: int, device: torch.device, autocast: torch.autocast
) -> float:
    """Share of the examples whose likeliest class is theirs; the model goes on training afterwards."""
    assert examples.labels is not None
    model.eval()
    right = torch.zeros((), device=device)
    for rows, batch in ordered_batches(examples, size, texts_of):
        labels = torch.tensor([examples.labels[row] for row in rows], device=device)
        batch = on_device(batch, device)
        with autocast:
            logits = model(batch["input_ids"], batch.get("attention_mask"))
        right += (logits.argmax(dim=-1) == labels).sum()
    model.train()
    return right.item() / len(examples)


def _training_settings(
    cell: Cell, scale: LraScale, device: torch.device, *, masked: bool = False
) -> TrainingSettings:
    pixels = cell.task in LRA_PIXELS
    steps: int = getattr(scale, f"{cell.task}_steps")
    rate = scale.pixels_learning_rate if pixels else scale.learning_rate
    if masked:
        steps, rate = max(round(scale.pretrain_share * steps), 1), scale.pretrain_learning_rate
    return TrainingSettings(
        steps=steps,
        global_batch_size=scale.pixels_batch_size if pixels else scale.batch_size,
        learning_rate=rate,
        warmup_steps=round(scale.warmup_share * steps),
        weight_decay=scale.weight_decay,
        seed=cell.seed,
        # On a CPU all in float32: of the mechanisms, some are much slower in bf16 there.
        precision="auto" if device.type == "cuda" else "float32",
        keep_checkpoints=1,
        keep_best=not masked,
    )


def _labelled(encoded: Encoded, rows: Sequence[int]) -> Batch:
    assert encoded.labels is not None
    labels = torch.tensor([encoded.labels[row] for row in rows], dtype=torch.int64)
    return {**texts_of(encoded, rows), "labels": labels}


def _times(log: MetricsLog) -> dict[str, float]:
    laps = log.events("train")
    before, speeds = [0, *(lap["step"] for lap in laps)], [lap["steps_per_second"] for lap in laps]
    return {
        "seconds": sum((laps[i]["step"] - before[i]) / speed for i, speed in enumerate(speeds)),
        "milliseconds_per_step": 1000 / statistics.median(speeds),
    }


def _curve(log: MetricsLog, *figures: str) -> list[dict[str, float]]:
    """Figures of the validation examples by step, with the training loss up to there."""
    losses = {lap["step"]: lap["loss"] for lap in log.events("train")}
    return [
        {"step": event["step"], "loss": losses[event["step"]], **{name: event[name] for name in figures}}
        for event in log.events("validation")
    ]
