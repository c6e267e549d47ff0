"""What the parts of a run work with, and what it writes down as it goes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from nystromformer.data.storage import PreparedData
from nystromformer.model import NystromformerForPreTraining
from nystromformer.settings import PretrainSettings
from nystromformer.training.approximation import measure_approximation
from nystromformer.training.batches import RunBatches
from nystromformer.training.checkpoint import CheckpointNotWritten, Progress, latest_step, save_checkpoint
from nystromformer.training.clock import Clock, Lap
from nystromformer.training.curves import draw_curves
from nystromformer.training.devices import peak_memory
from nystromformer.training.guard import Guard, check_count, check_finite
from nystromformer.training.metrics import Event, MetricsLog
from nystromformer.training.display import ProgressDisplay
from nystromformer.training.run_folder import RunFolder
from nystromformer.training.step import StepFigures
from nystromformer.training.together import Together
from nystromformer.training.tracking import Tracker
from nystromformer.training.pretraining import ValidationResult, validate


@dataclass
class Run:
    """What the loop works with, the same on every process but for the process's own batches."""

    settings: PretrainSettings
    folder: RunFolder
    accelerator: Accelerator
    together: Together
    prepared: PreparedData
    tokenizer: PreTrainedTokenizerBase
    batches: RunBatches
    model: NystromformerForPreTraining
    wrapped: torch.nn.Module
    """The model as DDP shares it; otherwise `model` itself."""
    optimizer: torch.optim.Optimizer
    autocast: torch.autocast
    guard: Guard
    unigram_loss: torch.Tensor
    peak_flops: float | None
    """Operations a second that all devices together can do; None where the device is not in the table."""
    metrics: MetricsLog
    tracker: Tracker
    progress: Progress

    @property
    def newest_checkpoint(self) -> str | None:
        newest = latest_step(self.folder.checkpoints)
        return None if newest is None else str(self.folder.checkpoints / f"step-{newest}")


def record(run: Run, event: Event) -> None:
    """Write an event to metrics.jsonl and the tracker; on the main process alone."""
    if run.accelerator.is_main_process:
        run.metrics.append(event)
        run.tracker.log(event)


def judge(run: Run, display: ProgressDisplay) -> None:
    """Report the steps that were skipped since the last call.

    Raises:
        NotFinite: more were skipped than allowed.
    """
    for fault in run.guard.read():
        run.progress.skipped += 1
        display.say(str(fault))
        record(run, fault.event())
    check_count(run.progress.skipped, run.settings.training.max_skipped_steps, newest=run.newest_checkpoint)


def log(run: Run, display: ProgressDisplay, figures: StepFigures, lap: Lap, rate: float, left: float) -> None:
    """Read the figures of the last steps from the device and record them."""
    own = torch.tensor([figures.tokens, figures.positions, figures.flops], dtype=torch.float32)
    losses = torch.stack([figures.mlm_loss, figures.sop_loss])
    sums = torch.cat([losses, own.to(losses.device, non_blocking=True)])
    mlm, sop, tokens, positions, flops = run.accelerator.reduce(sums, "sum").tolist()
    taken, norm = torch.stack([figures.taken, figures.gradient_norm]).tolist()
    if not taken:
        return
    mlm, sop = mlm / taken, sop / taken
    check_finite("the training loss", mlm, sop, newest=run.newest_checkpoint)
    event = {
        "kind": "train",
        "step": run.progress.step,
        "loss": mlm + sop,
        "mlm_loss": mlm,
        "sop_loss": sop,
        "learning_rate": rate,
        "gradient_norm": norm if norm < float("inf") else None,  # the last step may be a skipped one
        "tokens_per_second": tokens / lap.seconds,
        "padding_per_second": (positions - tokens) / lap.seconds,
        "model_flops_per_second": flops / lap.seconds,
        "model_flop_utilisation": run.peak_flops and flops / lap.seconds / run.peak_flops,
        "data_wait": lap.waited / lap.seconds,
        "peak_memory_bytes": peak_memory(run.accelerator.device),
        "seconds": run.progress.seconds,
    }
    record(run, event)
    display.train(run.progress.step, mlm + sop, rate, tokens / lap.seconds, left)


def validate_now(run: Run, clock: Clock, display: ProgressDisplay) -> float:
    """Validate, record and draw; the MLM loss."""
    with clock.outside_laps():
        result = measure(run)
        check_finite("the validation loss", result.mlm_loss, result.sop_loss, newest=run.newest_checkpoint)
        record(run, {**result.event(run.progress.step), "seconds": run.progress.seconds})
        if run.accelerator.is_main_process:
            draw_curves(run.metrics, run.folder.curves, f"{run.settings.name}: pretraining")
        display.validation(run.progress.step, result)
    return result.mlm_loss


def approximation_now(run: Run, clock: Clock, display: ProgressDisplay) -> None:
    """Measure and record the error of each layer's attention."""
    with clock.outside_laps():
        batches = run.batches.validation(run.settings.training.approximation_error_examples)
        event = measure_approximation(run.model, batches, run.accelerator, run.autocast, run.progress.step)
        record(run, {**event, "seconds": run.progress.seconds})
        display.approximation(event)


def measure(run: Run, count: int | None = None) -> ValidationResult:
    """Losses on the held-out examples, or on so many of them."""
    batches = run.batches.validation(count)
    return validate(run.model, batches, run.unigram_loss, run.accelerator, run.autocast)


def checkpoint(run: Run, clock: Clock, display: ProgressDisplay, validation_loss: float | None) -> None:
    """Write a checkpoint; on a full disk do what `training.on_full_disk` says.

    Raises:
        CheckpointNotWritten: the disk is full and the run is to stop.
    """
    settings = run.settings.training
    judge(run, display)  # the count of skipped steps is part of the checkpoint
    with clock.outside_laps():
        try:
            save_checkpoint(
                run.folder.checkpoints,
                run.model,
                run.optimizer,
                run.progress,
                run.accelerator,
                keep=settings.keep_checkpoints,
                keep_best=settings.keep_best,
                validation_loss=validation_loss,
            )
        except CheckpointNotWritten as error:
            if settings.on_full_disk == "stop":
                raise
            display.say(f"{error}; going on without (training.on_full_disk=continue)")
