"""The loop of every training: steps, and between them what is recorded, measured and kept.

    batch → step → votes (signals, the clock) → figures → measurements → checkpoint → batch …

What is trained for is handed in, see `objective`; one step is in `step`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from nystromformer.heap import keep_freed_memory
from nystromformer.model import NystromformerConfig
from nystromformer.settings import TrainingSettings
from nystromformer.training import devices
from nystromformer.training.checkpoint import (
    CheckpointNotWritten,
    Progress,
    latest_step,
    load_checkpoint,
    save_checkpoint,
)
from nystromformer.training.clock import Clock, Forecast, Lap, step_profiler
from nystromformer.training.devices import note_computation
from nystromformer.training.display import ProgressDisplay
from nystromformer.training.flops import peak_flops
from nystromformer.training.graphs import Graphs
from nystromformer.training.guard import Guard, check_count, check_finite
from nystromformer.training.metrics import Event, MetricsLog, numbers_of
from nystromformer.training.objective import Batches, Measurement, Objective
from nystromformer.training.optimizer import build_optimizer, set_learning_rate
from nystromformer.training.parallel import shard
from nystromformer.training.phases import Plan, plan_of
from nystromformer.training.signals import StopRequest
from nystromformer.training.step import StepFigures, train_step
from nystromformer.training.together import Agreement, Together


class Run:
    """What the loop works with, the same on every process but for the process's own batches.

    Making one is everything up to the first step, or on a resumed run up to the step it had reached.

    Args:
        folder: holds metrics.jsonl, checkpoints/ and, if asked for, profile/.
        model: on its device, with its first weights.
        config: of its encoder.
        saved: the checkpoint to go on from; see `whole_checkpoint`.
        logs_after: whether figures are recorded after a step, counted from 1; after the last they always are.
        saves_after: the same of checkpoints.
        plan: of all steps; that of the settings alone when absent.
        label: before every line that is printed, where several trainings share a terminal.
        remedy: what a person can do about numbers that are not finite.

    Raises:
        UserError: the checkpoint is of another model.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        folder: Path,
        model: torch.nn.Module,
        config: NystromformerConfig,
        objective: Objective,
        batches: Batches,
        accelerator: Accelerator,
        together: Together,
        *,
        saved: Path | None,
        logs_after: Callable[[int], bool],
        saves_after: Callable[[int], bool],
        plan: Plan | None = None,
        label: str = "",
        remedy: str = "write a lower training.learning_rate and name=OTHER for a new run",
    ) -> None:
        self.settings, self.folder, self.label, self.remedy = settings, folder, label, remedy
        self.objective, self.batches, self.accelerator = objective, batches, accelerator
        self.model, self.config = model, config
        self.logs_after, self.saves_after = logs_after, saves_after
        self.plan = plan or plan_of(settings)
        self.measurements: list[Measurement] = []
        self.tracker: GeneralTracker | None = None

        sharded = settings.parallel == "fsdp" and accelerator.num_processes > 1
        if sharded:
            shard(model, accelerator)
        self.optimizer = build_optimizer(model, settings)
        self.progress: Progress = together.on_all(
            lambda: load_checkpoint(saved, model, self.optimizer, accelerator)
        )
        if self.progress.step == 0:
            torch.manual_seed(settings.seed + accelerator.process_index)  # dropout
        self.wrapped: torch.nn.Module = model if sharded else accelerator.prepare_model(model)
        if settings.compile:
            devices.compile_in_place(model)
        if accelerator.device.type == "cpu":
            keep_freed_memory()
        self.graphs = None
        if settings.cuda_graphs:
            self.graphs = Graphs(list(model.parameters()), accelerator.device)
        self.dtype = devices.precision(settings, accelerator.device)
        self.autocast = devices.autocast(self.dtype, accelerator.device)
        self.guard = Guard(model, batches, self.autocast, objective.means)
        peak = peak_flops(accelerator.device, self.dtype)  # None where the device is not in the table
        self.peak_flops = peak and peak * accelerator.num_processes
        self.metrics = MetricsLog(folder / "metrics.jsonl")
        if accelerator.is_main_process:
            self.metrics.rewind(self.progress.step)

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def newest_checkpoint(self) -> str | None:
        newest = latest_step(self.checkpoints)
        return None if newest is None else str(self.checkpoints / f"step-{newest}")

    def say(self, text: str) -> None:
        """Print on the main process, while no display is shown."""
        ProgressDisplay(0, 0, shown=self.accelerator.is_main_process, label=self.label).say(text)

    def close(self) -> None:
        """Part from the tracker, then from the model that the processes share.

        That model goes before the group of processes does. In the other order it would end the group when
        Python frees it, which waits for the group's threads while holding the lock that those may wait for.
        """
        if self.tracker:
            self.tracker.finish()
            self.tracker = None
        self.wrapped = self.model
        self.accelerator.free_memory()


def train(run: Run, stop: StopRequest) -> None:
    """Steps, with measurements and checkpoints between them, until the last step or a signal.

    Raises:
        UserError: too many steps were not finite, or a checkpoint cannot be written.
        SystemExit: a signal came; a checkpoint was written first.
    """
    settings, plan, progress, accelerator = run.settings, run.plan, run.progress, run.accelerator
    if progress.finished:
        return
    main = accelerator.is_main_process
    note_computation(progress, run.config, accelerator, run.dtype, run.say)
    run.wrapped.train()
    clock, forecast = Clock(progress, settings.max_minutes), Forecast(progress, plan, settings.max_minutes)
    agreement = Agreement(accelerator)
    figures = None
    steps = run.batches.training(progress.step, pin_memory=accelerator.device.type == "cuda")
    with (
        ProgressDisplay(plan.steps, progress.step, shown=main, label=run.label) as display,
        step_profiler(
            run.folder / "profile", settings.profile_steps * main, accelerator.device, display.say
        ) as profiler,
    ):
        for micro_batches in clock.waiting(steps):
            rate = plan.rate(progress.step, clock.spent())
            set_learning_rate(run.optimizer, rate)
            done = train_step(
                run.wrapped,
                run.objective,
                run.optimizer,
                micro_batches,
                accelerator,
                run.autocast,
                gradient_clipping=settings.gradient_clipping,
                graphs=run.graphs,
            )
            figures = done if figures is None else figures + done
            progress.step += 1
            run.guard.note(progress.step, done.fault)
            *votes, seconds = agreement.exchange([*stop.votes(), clock.now() * main])
            clock.tick(seconds)
            display.advance(progress.step)
            last = progress.finished = progress.step == plan.steps or clock.spent() >= 1
            stopping = stop.decide(votes)
            if told := forecast.told():
                display.say(told)
            if profiler:
                with clock.outside_laps():
                    profiler.step()
            if last or run.logs_after(progress.step):
                judge(run, display)
                lap = clock.lap()
                left = plan.time_left(progress.step, figures.steps, lap.seconds)
                log(run, display, figures, lap, rate, clock.at_most(left))
                figures = None
            best_by = None
            for measurement in run.measurements:
                if last or measurement.due(progress.step):
                    with clock.outside_laps():
                        found = measure(run, measurement, display)
                    best_by = best_by if found is None else found
            if last or stopping or run.saves_after(progress.step):
                checkpoint(run, clock, display, best_by)
            if last:
                break
            if stopping:
                display.say(f"stopped at step {progress.step}; the same command goes on from there")
                run.close()
                stop.exit()


def record(run: Run, event: Event) -> None:
    """Write an event to metrics.jsonl and the tracker; on the main process alone."""
    if run.accelerator.is_main_process:
        run.metrics.append(event)
        if run.tracker:
            run.tracker.log(numbers_of(event), step=event["step"])


def judge(run: Run, display: ProgressDisplay) -> None:
    """Report the steps that were skipped since the last call.

    Raises:
        NotFinite: more were skipped than allowed.
    """
    for fault in run.guard.read():
        run.progress.skipped += 1
        display.say(str(fault))
        record(run, fault.event())
    check_count(
        run.progress.skipped, run.settings.max_skipped_steps, newest=run.newest_checkpoint, remedy=run.remedy
    )


def log(run: Run, display: ProgressDisplay, figures: StepFigures, lap: Lap, rate: float, left: float) -> None:
    """Read the figures of the last steps from the device and record them."""
    own = torch.tensor([figures.tokens, figures.positions, figures.flops], dtype=torch.float32)
    losses = torch.stack(figures.losses)
    sums = torch.cat([losses, own.to(losses.device, non_blocking=True)])
    *of_parts, tokens, positions, flops = run.accelerator.reduce(sums, "sum").tolist()
    taken, norm = torch.stack([figures.taken, figures.gradient_norm]).tolist()
    if not taken:
        return
    parts = {name: part / taken for name, part in zip(run.objective.losses, of_parts, strict=True)}
    loss = sum(parts.values())
    check_finite("the training loss", loss, newest=run.newest_checkpoint, remedy=run.remedy)
    event = {
        "kind": "train",
        "step": run.progress.step,
        "loss": loss,
        **parts,
        "learning_rate": rate,
        "gradient_norm": norm if norm < float("inf") else None,  # the last step may be a skipped one
        "steps_per_second": figures.steps / lap.seconds,
        "tokens_per_second": tokens / lap.seconds,
        "padding_per_second": (positions - tokens) / lap.seconds,
        "model_flops_per_second": flops / lap.seconds,
        "model_flop_utilisation": run.peak_flops and flops / lap.seconds / run.peak_flops,
        "data_wait": lap.waited / lap.seconds,
        "peak_memory_bytes": devices.peak_memory(run.accelerator.device),
        "seconds": run.progress.seconds,
    }
    record(run, event)
    display.train(run.progress.step, loss, rate, tokens / lap.seconds, left)


def measure(run: Run, measurement: Measurement, display: ProgressDisplay) -> float | None:
    """Take a measurement, record and draw it; the number by which this step is the best, if it has one.

    Raises:
        NotFinite: a loss is not finite, although every gradient was.
    """
    found = measurement.take(run.progress.step)
    losses = [value for name, value in found.figures.items() if name.endswith("loss")]
    what = f"the {measurement.kind} loss"
    check_finite(what, *losses, newest=run.newest_checkpoint, remedy=run.remedy)
    event = {"kind": measurement.kind, "step": run.progress.step, **found.figures}
    record(run, {**event, "seconds": run.progress.seconds})
    if run.accelerator.is_main_process:
        measurement.draw()
    display.say(found.line)
    return found.best_by


def checkpoint(run: Run, clock: Clock, display: ProgressDisplay, best_by: float | None) -> None:
    """Write a checkpoint; on a full disk do what `training.on_full_disk` says.

    Raises:
        CheckpointNotWritten: the disk is full and the run is to stop.
    """
    judge(run, display)  # the count of skipped steps is part of the checkpoint
    with clock.outside_laps():
        try:
            save_checkpoint(
                run.checkpoints,
                run.model,
                run.optimizer,
                run.progress,
                run.accelerator,
                keep=run.settings.keep_checkpoints,
                keep_best=run.settings.keep_best,
                validation_loss=best_by,
            )
        except CheckpointNotWritten as error:
            if run.settings.on_full_disk == "stop":
                raise
            display.say(f"{error}; going on without (training.on_full_disk=continue)")
