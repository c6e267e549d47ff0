"""`nystromformer pretrain`: this file is the table of contents of a run.

data → model → (resume) → checks → steps, validations, checkpoints → export and report
"""

from __future__ import annotations

import errno
import sys
from contextlib import ExitStack
from dataclasses import asdict

import torch
from accelerate import Accelerator

from nystromformer.data.storage import PreparedData
from nystromformer.errors import UserError
from nystromformer.model import NystromformerForPreTraining
from nystromformer.model.attention import NystromformerSelfAttention
from nystromformer.settings import PretrainSettings
from nystromformer.training import devices, run_data
from nystromformer.training.agreement import Agreement
from nystromformer.training.batches import RunBatches
from nystromformer.training.checkpoint import Progress, load_checkpoint, whole_checkpoint
from nystromformer.training.checks import check_run
from nystromformer.training.clock import Clock, Forecast
from nystromformer.training.curves import draw_approximation, draw_curves, draw_speed
from nystromformer.training.flops import peak_flops
from nystromformer.training.guard import Guard
from nystromformer.training.metrics import MetricsLog
from nystromformer.training.optimizer import build_optimizer, learning_rate, set_learning_rate
from nystromformer.training.parallel import load_weights, shard, whole_weights
from nystromformer.training.profiling import StepProfiler
from nystromformer.training.display import ProgressDisplay
from nystromformer.training.report import finish_run
from nystromformer.training.loop import Run, approximation_now, checkpoint, judge, log, validate_now
from nystromformer.training.run_folder import RunFolder
from nystromformer.training.signals import StopRequest
from nystromformer.training.start import build_model, fit, settled
from nystromformer.training.step import train_step
from nystromformer.training.together import Together
from nystromformer.training.tracking import open_tracker
from nystromformer.training.pretraining import unigram_losses


def pretrain(settings: PretrainSettings) -> None:
    """Pretrain, or go on with a run that was stopped.

    Raises:
        UserError: a setting, the data, the run folder or a checkpoint is not usable, the disk is
            full, or training comes to numbers that are not finite.
    """
    accelerator = devices.open_accelerator(settings.training)
    together = Together(accelerator)
    settings = together.on_all(lambda: _checked(settings, accelerator))
    with ExitStack() as held:
        together.on_main(lambda: held.enter_context(RunFolder(settings).held()))
        run = setup(settings, accelerator, together)
        try:
            together.on_all(lambda: check_run(run))
            with StopRequest() as stop:
                train(run, stop)
            finish(run)
        finally:
            leave(run)


def setup(settings: PretrainSettings, accelerator: Accelerator, together: Together) -> Run:
    """Everything up to the first step; on a resumed run, up to the step it had reached."""
    folder = RunFolder(settings)
    prepared = together.on_main(lambda: run_data.prepared_for(folder, settings, show_progress=True))
    prepared = together.on_all(lambda: PreparedData.open(prepared.folder))  # does every machine see it?
    tokenizer = prepared.tokenizer()
    batches = together.on_all(
        lambda: RunBatches(
            settings, prepared, rank=accelerator.process_index, world_size=accelerator.num_processes
        )
    )
    start = together.on_all(lambda: build_model(settings, tokenizer, prepared.unigram_counts))
    model = start.model
    together.on_main(lambda: _begin(folder, settings, prepared))
    saved = together.on_main(lambda: whole_checkpoint(folder.checkpoints))
    model.to(accelerator.device)
    if start.fits_convolution and saved is None:
        fit(start, settings.init, batches.some_training_rows(settings.init.convolution_rows))
    sharded = settings.training.parallel == "fsdp" and accelerator.num_processes > 1
    if sharded:
        shard(model, accelerator)
    optimizer = build_optimizer(model, settings.training)
    progress = together.on_all(lambda: load_checkpoint(saved, model, optimizer, accelerator))
    if progress.step == 0:
        torch.manual_seed(settings.training.seed + accelerator.process_index)  # dropout
    wrapped = model if sharded else accelerator.prepare_model(model)
    if settings.training.compile:
        devices.compile_in_place(model)
    dtype = devices.precision(settings.training, accelerator.device)
    autocast = devices.autocast(dtype, accelerator.device)
    peak = peak_flops(accelerator.device, dtype)
    metrics = MetricsLog(folder.metrics)
    tracker = open_tracker(folder, settings, asdict(settings), on=accelerator.is_main_process)
    if accelerator.is_main_process:
        if changed := run_data.changed_start(folder, settings):
            print(f"{changed}: the run keeps its own; name=OTHER begins from those", file=sys.stderr)
        metrics.rewind(progress.step)
        _announce(settings, folder, accelerator, model, prepared, start.description, progress, dtype)
    return Run(
        settings=settings,
        folder=folder,
        accelerator=accelerator,
        together=together,
        prepared=prepared,
        tokenizer=tokenizer,
        batches=batches,
        model=model,
        wrapped=wrapped,
        optimizer=optimizer,
        autocast=autocast,
        guard=Guard(model, batches, autocast),
        unigram_loss=unigram_losses(prepared.unigram_counts, model.config.vocab_size).to(accelerator.device),
        peak_flops=peak and peak * accelerator.num_processes,
        metrics=metrics,
        tracker=tracker,
        progress=progress,
    )


def train(run: Run, stop: StopRequest) -> None:
    """Steps, with validations and checkpoints between them, until the last step or a signal."""
    settings, progress, accelerator = run.settings.training, run.progress, run.accelerator
    if progress.finished:
        return
    run.wrapped.train()
    clock, forecast = Clock(progress, settings.max_minutes), Forecast(progress, settings)
    agreement = Agreement(accelerator)
    profiler = StepProfiler(
        run.folder.profile, settings.profile_steps * accelerator.is_main_process, accelerator.device
    )
    figures = None
    steps = run.batches.training(progress.step, pin_memory=accelerator.device.type == "cuda")
    with ProgressDisplay(settings.steps, progress.step, shown=accelerator.is_main_process) as display:
        for micro_batches in clock.waiting(steps):
            rate = learning_rate(progress.step, settings, clock.spent())
            set_learning_rate(run.optimizer, rate)
            done = train_step(
                run.wrapped,
                run.model.config,
                run.optimizer,
                micro_batches,
                accelerator,
                run.autocast,
                gradient_clipping=settings.gradient_clipping,
            )
            figures = done if figures is None else figures + done
            progress.step += 1
            run.guard.note(progress.step, done.fault)
            *votes, seconds = agreement.exchange([*stop.votes(), clock.now() * accelerator.is_main_process])
            clock.tick(seconds)
            display.advance(progress.step)
            last = progress.finished = progress.step == settings.steps or clock.spent() >= 1
            stopping = stop.decide(votes)
            if told := forecast.told():
                display.say(told)

            with clock.outside_laps():
                if profiler.step():
                    display.say(f"profile of {settings.profile_steps} steps in {run.folder.profile}")
            if last or progress.step % settings.log_every == 0:
                judge(run, display)
                lap = clock.lap()
                left = (settings.steps - progress.step) * lap.seconds / figures.steps
                log(run, display, figures, lap, rate, clock.at_most(left))
                figures = None
            every = settings.approximation_error_every
            if every and (last or progress.step % every == 0):
                approximation_now(run, clock, display)
            validation_loss = None
            if last or progress.step % settings.validate_every == 0:
                validation_loss = validate_now(run, clock, display)
            if last or stopping or progress.step % settings.checkpoint_every == 0:
                checkpoint(run, clock, display, validation_loss)
            if last:
                break
            if stopping:
                display.say(f"stopped at step {progress.step}; the same command goes on from there")
                run.tracker.close()
                stop.exit()
    profiler.close()


def finish(run: Run) -> None:
    """Export the model, draw the curves, and say how it went."""
    model = _whole_model(run)
    run.together.on_main(lambda: _export(run, model))
    run.tracker.close()


def _export(run: Run, model: NystromformerForPreTraining) -> None:
    title = f"{run.settings.name}: pretraining"
    try:
        draw_curves(run.metrics, run.folder.curves, title)
        draw_speed(run.metrics, run.folder.speed, title)
        draw_approximation(run.metrics, run.folder.approximation, title)
        finish_run(run.settings, run.folder, model, run.tokenizer, run.prepared, run.metrics)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise UserError(
            f"training is over and {run.newest_checkpoint} holds it, but {run.folder.model} cannot be "
            f"written ({error.strerror}): free space, and the same command writes it"
        ) from None


def leave(run: Run) -> None:
    """Part from the other processes: first the model they share, then the group they are.

    In the other order the shared model would end the group when Python frees it, which waits for the
    group's threads while holding the lock that those may be waiting for.
    """
    run.wrapped = run.model
    run.accelerator.free_memory()
    run.accelerator.end_training()


def _whole_model(run: Run) -> NystromformerForPreTraining:
    """The model to be exported: itself, or a new one with all processes' slices put together."""
    if run.wrapped is not run.model or run.accelerator.num_processes == 1:
        return run.model
    weights = whole_weights(run.model, keep=run.accelerator.is_main_process)
    model = NystromformerForPreTraining(run.model.config)
    if weights:
        load_weights(model, weights)
    return model


def _checked(settings: PretrainSettings, accelerator: Accelerator) -> PretrainSettings:
    """The settings, all known, before what takes long: whether the run can be, as far as they tell."""
    if complaints := list(settings.training.complaints_on(accelerator.num_processes)):
        raise UserError(complaints[0])
    settings = settled(settings)
    RunFolder(settings).check(settings)
    return settings


def _begin(folder: RunFolder, settings: PretrainSettings, prepared: PreparedData) -> None:
    """The run's folder with its settings and what data it is trained on."""
    folder.create(settings)
    run_data.remember(folder, prepared, settings)


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
    layer: NystromformerSelfAttention = model.nystromformer.encoder.layer[0].get_submodule("attention.self")  # type: ignore[assignment]
    how = layer.describe(settings.model.max_length, dtype)
    print(f"device   {devices.describe(accelerator, dtype)}; attention: {how}", flush=True)
