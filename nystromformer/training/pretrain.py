"""`nystromformer pretrain`: this file is the table of contents of a run.

data → model → (resume) → steps, validations, checkpoints → export and report
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from nystromformer.data.examples import PretrainingExamples
from nystromformer.data.loader import GlobalBatches, training_loader, validation_batches
from nystromformer.data.prepare import prepare
from nystromformer.data.storage import PreparedData
from nystromformer.errors import UserError
from nystromformer.model import NystromformerForPreTraining
from nystromformer.settings import PretrainSettings
from nystromformer.training import devices
from nystromformer.training.checkpoint import Progress, load_latest, save_checkpoint
from nystromformer.training.clock import Clock
from nystromformer.training.curves import draw_curves
from nystromformer.training.metrics import MetricsLog
from nystromformer.training.optimizer import build_optimizer, learning_rate, set_learning_rate
from nystromformer.training.progress import ProgressDisplay
from nystromformer.training.report import finish_run
from nystromformer.training.run_folder import RunFolder
from nystromformer.training.signals import StopRequest
from nystromformer.training.start import build_model
from nystromformer.training.step import Batch, StepFigures, grouped, train_step
from nystromformer.training.tracking import Tracker, open_tracker
from nystromformer.training.validation import ValidationResult, unigram_losses, validate


@dataclass
class Run:
    """What the loop works with, the same on every process but for the process's own batches."""

    settings: PretrainSettings
    folder: RunFolder
    accelerator: Accelerator
    prepared: PreparedData
    tokenizer: PreTrainedTokenizerBase
    model: NystromformerForPreTraining
    wrapped: torch.nn.Module
    """The model as the processes share it; `model` itself when there is one process."""
    optimizer: torch.optim.Optimizer
    autocast: torch.autocast
    unigram_loss: torch.Tensor
    metrics: MetricsLog
    tracker: Tracker
    progress: Progress


def pretrain(settings: PretrainSettings) -> None:
    """Pretrain, or go on with a run that was stopped.

    Raises:
        UserError: a setting, the data, the run folder or a checkpoint is not usable.
    """
    run = setup(settings)
    with StopRequest() as stop:
        train(run, stop)
    finish(run)


def setup(settings: PretrainSettings) -> Run:
    """Everything up to the first step; on a resumed run, up to the step it had reached."""
    accelerator = devices.open_accelerator()
    _check(settings, accelerator)
    folder = RunFolder(settings)
    folder.check(settings)  # before what takes long
    with accelerator.main_process_first():  # the main process prepares, the others find the result
        prepared = prepare(settings.preparation, show_progress=accelerator.is_main_process)
    tokenizer = prepared.tokenizer()
    model, start = build_model(settings, tokenizer, prepared.unigram_counts)
    if accelerator.is_main_process:
        folder.create(settings)
    model.to(accelerator.device)
    optimizer = build_optimizer(model, settings.training)
    progress = load_latest(folder.checkpoints, model, optimizer, accelerator)
    if progress.step == 0:
        torch.manual_seed(settings.training.seed + accelerator.process_index)  # dropout
    wrapped = accelerator.prepare_model(model)
    if settings.training.compile:
        model.compile()
    dtype = devices.precision(settings.training, accelerator.device)
    metrics = MetricsLog(folder.metrics)
    tracker = open_tracker(folder, settings, asdict(settings), on=accelerator.is_main_process)
    if accelerator.is_main_process:
        metrics.rewind(progress.step)
        _announce(settings, folder, accelerator, model, prepared, start, progress, dtype)
    return Run(
        settings=settings,
        folder=folder,
        accelerator=accelerator,
        prepared=prepared,
        tokenizer=tokenizer,
        model=model,
        wrapped=wrapped,
        optimizer=optimizer,
        autocast=devices.autocast(dtype, accelerator.device),
        unigram_loss=unigram_losses(prepared.unigram_counts, model.config.vocab_size).to(accelerator.device),
        metrics=metrics,
        tracker=tracker,
        progress=progress,
    )


def train(run: Run, stop: StopRequest) -> None:
    """Steps, with validations and checkpoints between them, until the last step or a signal."""
    settings, progress = run.settings.training, run.progress
    if progress.finished:
        return
    run.wrapped.train()
    clock = Clock(progress, run.accelerator, settings.max_minutes)
    figures, logged_step = None, progress.step
    with ProgressDisplay(settings.steps, progress.step, shown=run.accelerator.is_main_process) as display:
        for micro_batches in _steps(run):
            rate = learning_rate(progress.step, settings, clock.spent())
            set_learning_rate(run.optimizer, rate)
            done = train_step(
                run.wrapped,
                run.optimizer,
                micro_batches,
                run.accelerator,
                run.autocast,
                gradient_clipping=settings.gradient_clipping,
            )
            figures = done if figures is None else figures + done
            progress.step += 1
            clock.tick()
            display.advance(progress.step)
            last = progress.finished = progress.step == settings.steps or clock.spent() >= 1

            if last or progress.step % settings.log_every == 0:
                elapsed = clock.lap()
                left = (settings.steps - progress.step) * elapsed / (progress.step - logged_step)
                _log(run, display, figures, rate, elapsed, clock.at_most(left))
                figures, logged_step = None, progress.step
            if last or progress.step % settings.validate_every == 0:
                with clock.outside_laps():
                    display.validation(progress.step, _validate(run))
            stopping = stop.requested(run.accelerator)
            if last or stopping or progress.step % settings.checkpoint_every == 0:
                with clock.outside_laps():
                    _checkpoint(run)
            if last:
                break
            if stopping:
                display.say(f"stopped at step {progress.step}; the same command goes on from there")
                run.tracker.close()
                stop.exit()


def finish(run: Run) -> None:
    """Export the model, draw the curves, and say how it went."""
    if run.accelerator.is_main_process:
        draw_curves(run.metrics, run.folder.curves, f"{run.settings.name}: pretraining")
        finish_run(run.settings, run.folder, run.model, run.tokenizer, run.prepared, run.metrics)
    run.tracker.close()
    run.accelerator.wait_for_everyone()
    run.accelerator.end_training()


def _check(settings: PretrainSettings, accelerator: Accelerator) -> None:
    complaints = list(settings.training.complaints_on(accelerator.num_processes))
    if complaints:
        raise UserError(complaints[0])


def _steps(run: Run) -> Iterator[list[Batch]]:
    """This process's micro-batches of each step that is still to do."""
    settings, accelerator = run.settings.training, run.accelerator
    share = settings.global_batch_size // accelerator.num_processes
    micro = settings.micro_batch_size or share
    examples = _examples(run, "train")
    batches = GlobalBatches(
        len(examples),
        global_batch_size=settings.global_batch_size,
        micro_batch_size=micro,
        seed=settings.seed,
        start_step=run.progress.step,
        num_steps=settings.steps - run.progress.step,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    loader = training_loader(
        examples,
        batches,
        workers=settings.loader_workers,
        pin_memory=accelerator.device.type == "cuda",
    )
    return grouped(iter(loader), share // micro)


def _examples(run: Run, split: str) -> PretrainingExamples:
    data = run.settings.data
    return PretrainingExamples(
        run.prepared,
        split,
        max_length=run.settings.model.max_length,
        masking_probability=data.masking_probability,
        masking=data.masking,
        seed=run.settings.training.seed,
    )


def _validate(run: Run) -> ValidationResult:
    settings, accelerator = run.settings.training, run.accelerator
    examples = _examples(run, "validation")
    share = settings.global_batch_size // accelerator.num_processes
    keys = validation_batches(
        examples,
        count=settings.validation_examples,
        batch_size=settings.micro_batch_size or share,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    batches = (examples.__getitems__(batch) for batch in keys)
    result = validate(run.model, batches, run.unigram_loss, accelerator, run.autocast)
    if accelerator.is_main_process:
        event = {**result.event(run.progress.step), "seconds": run.progress.seconds}
        run.metrics.append(event)
        run.tracker.log(event)
        draw_curves(run.metrics, run.folder.curves, f"{run.settings.name}: pretraining")
    return result


def _log(
    run: Run, display: ProgressDisplay, figures: StepFigures, rate: float, elapsed: float, left: float
) -> None:
    """Read the figures of the last steps from the device and record them."""
    sums = torch.stack([figures.mlm_loss, figures.sop_loss])
    sums = torch.cat([sums, torch.tensor([float(figures.tokens)], device=sums.device)])
    mlm, sop, tokens = run.accelerator.reduce(sums, "sum").tolist()
    mlm, sop = mlm / figures.steps, sop / figures.steps
    if not run.accelerator.is_main_process:
        return
    event = {
        "kind": "train",
        "step": run.progress.step,
        "loss": mlm + sop,
        "mlm_loss": mlm,
        "sop_loss": sop,
        "learning_rate": rate,
        "gradient_norm": float(figures.gradient_norm),
        "tokens_per_second": tokens / elapsed,
        "seconds": run.progress.seconds,
    }
    run.metrics.append(event)
    run.tracker.log(event)
    display.train(run.progress.step, mlm + sop, rate, tokens / elapsed, left)


def _checkpoint(run: Run) -> None:
    save_checkpoint(
        run.folder.checkpoints,
        run.model,
        run.optimizer,
        run.progress,
        run.accelerator,
        keep=run.settings.training.keep_checkpoints,
    )


def _announce(
    settings: PretrainSettings,
    folder: RunFolder,
    accelerator: Accelerator,
    model: NystromformerForPreTraining,
    prepared: PreparedData,
    start: str,
    progress: Progress,
    dtype: torch.dtype,
) -> None:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"run      {folder.path}" + (f", resumed at step {progress.step}" if progress.step else ""))
    print(f"data     {prepared.folder}")
    print(
        f"model    {parameters / 1e6:.1f} M parameters, {settings.model.attention} attention, {start}"
        if not progress.step
        else f"model    {parameters / 1e6:.1f} M parameters, {settings.model.attention} attention"
    )
    print(f"device   {devices.describe(accelerator, dtype)}", flush=True)
