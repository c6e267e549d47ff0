"""What there is to train for a task, every cell of the grid with every seed, and who trains which.

runs/NAME/TASK/
    settings.json          what the results are of, see identity.py
    rate3e-05_batch32/
        seed-0/            metrics.jsonl, checkpoints/ while it trains, model/, held_out.npz
        seed-0.json        its result: the seed is done when this file is there
        seed-0.lock        held while it is trained
    summary.json, model/, curve.png and other pictures  of the best
runs/NAME/.lock            held for moments: noting, taking a seed, the table, the best model

Several commands of one name share the seeds. A lock goes when its process does, however that ended, so a
killed command leaves nothing behind. A seed is taken under the run's lock and never waited for, so looking
whether one is held disturbs nobody.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from nystromformer.errors import UserError
from nystromformer.files import Held, held
from nystromformer.settings.compose import compose
from nystromformer.settings.finetune import FinetuneSettings, TaskSettings
from nystromformer.tasks.benchmarks import GLUE_TASKS
from nystromformer.tasks.identity import compare, identity, is_noted, note
from nystromformer.tasks.setup import TaskSetup

_MOMENTS = 600.0
"""Seconds after which whoever holds a run for a moment is named."""
_OTHERWISE = "write name=OTHER"


@dataclass(frozen=True)
class Job:
    """One seed of one cell of one task."""

    task: TaskSettings
    learning_rate: float
    batch_size: int
    seed: int
    task_folder: Path

    @property
    def cell(self) -> str:
        return f"rate{self.learning_rate:g}_batch{self.batch_size}"

    @property
    def folder(self) -> Path:
        return self.task_folder / self.cell / f"seed-{self.seed}"

    @property
    def result(self) -> Path:
        return self.folder.with_suffix(".json")

    @property
    def finished(self) -> bool:
        return self.result.exists()

    @property
    def lock(self) -> Path:
        return self.folder.with_suffix(".lock")

    def tidy(self) -> None:
        """Remove what a process that was killed after the result may have left."""
        shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        for left in self.folder.parent.glob(f"{self.lock.name}*"):
            left.unlink(missing_ok=True)

    @property
    def label(self) -> str:
        return f"{self.task.name} {self.cell} seed {self.seed}"


def run_folder(settings: FinetuneSettings) -> Path:
    return Path(settings.runs_folder).expanduser() / settings.name


def tasks_of(settings: FinetuneSettings) -> list[TaskSettings]:
    """The task, or GLUE's nine, each with its own recipe where `task=glue` was given none."""
    if settings.task.name != "glue":
        return [settings.task]
    return [_own_recipe(name, settings.task) for name in GLUE_TASKS]


def _own_recipe(name: str, given: TaskSettings) -> TaskSettings:
    composed = compose("finetune", [f"task={name}", "checkpoint=any"])
    assert isinstance(composed, FinetuneSettings)
    own = composed.task
    return replace(
        own,
        learning_rates=given.learning_rates or own.learning_rates,
        batch_sizes=given.batch_sizes or own.batch_sizes,
        epochs=own.epochs if given.epochs is None else given.epochs,
    )


def jobs_of(settings: FinetuneSettings, task: TaskSettings) -> Iterator[Job]:
    """Cell after cell, the seeds of each."""
    folder = run_folder(settings) / task.name
    for batch_size in task.batch_sizes:
        for rate in task.learning_rates:
            for seed in range(settings.first_seed, settings.first_seed + settings.seeds):
                yield Job(task, rate, batch_size, seed, folder)


# --- shared by several commands ----------------------------------------------------------------------


@contextmanager
def run_held(settings: FinetuneSettings, part: str = "") -> Iterator[None]:
    """Hold the run, or a part of it, for a moment; others wait.

    Raises:
        UserError: the folder cannot be written, or somebody holds it for minutes.
    """
    folder = run_folder(settings)
    with ExitStack() as lock:
        try:
            lock.enter_context(held(folder / f".{part}lock", str(folder), _OTHERWISE, wait=_MOMENTS))
        except OSError as error:
            raise UserError(
                f"cannot write {folder} ({error.strerror or error}): write runs_folder=FOLDER with a folder "
                "that you may write to"
            ) from None
        yield


@contextmanager
def taken(settings: FinetuneSettings, job: Job) -> Iterator[bool]:
    """Hold a seed while it is trained; False where it is done, or another process holds it."""
    with ExitStack() as mine:
        with run_held(settings):
            free = not job.finished and holder_of(job, mine) is None
        yield free


def holder_of(job: Job, mine: ExitStack | None = None) -> str | None:
    """Who holds a seed, in words; with `mine` a seed that nobody holds is taken."""
    return _holder(job.lock, job.label, mine)


def _holder(lock: Path, what: str, mine: ExitStack | None = None) -> str | None:
    with ExitStack() as looking:
        try:
            (mine or looking).enter_context(held(lock, what, _OTHERWISE))
        except Held as other:
            return str(other)
    return None


def has_traces(task_folder: Path) -> bool:
    """Whether a seed of the task is done or has begun."""
    kinds = ("seed-*.json", "seed-*/*.jsonl", "seed-*/checkpoints/step-*")
    return any(next(task_folder.glob(f"rate*/{kind}"), None) for kind in kinds)


def settle(setup: TaskSetup, task: TaskSettings, mine: Job) -> None:
    """Agree on what the task's results are of, before the first step of a seed that this process holds.

    The first one writes it down, the others compare.

    Raises:
        UserError: there are results, or another process trains seeds, of something else.
    """
    folder, now = run_folder(setup.settings) / task.name, identity(setup.settings, task)
    with run_held(setup.settings):
        begun, noted = has_traces(folder), is_noted(folder)
        if begun and not noted:
            raise UserError(
                f"{folder} holds results, and no settings.json that says what they are of: bring it back, "
                f"write name=OTHER, or remove {folder}"
            )
        if begun or (noted and _others(folder, mine)):
            compare(folder, now, setup.contents)
        else:
            note(folder, now, setup.contents)


def forget_unstarted(settings: FinetuneSettings, task: TaskSettings) -> None:
    """Remove a task's folder, and then an empty run's, where a mistake came before the first step."""
    run = run_folder(settings)
    if not run.exists():
        return
    with run_held(settings):
        folder = run / task.name
        if not has_traces(folder) and not _others(folder):
            shutil.rmtree(folder, ignore_errors=True)
        if {path.name for path in run.iterdir()} <= {".lock", ".lock.holder"}:
            # While it is held: whoever waits for this file finds it gone, and makes another.
            shutil.rmtree(run, ignore_errors=True)
            try:
                run.parent.rmdir()
            except OSError:  # holds other runs
                return


def _others(task_folder: Path, mine: Job | None = None) -> bool:
    """Whether another process trains a seed of the task."""
    locks = task_folder.glob("rate*/seed-*.lock")
    return any(_holder(lock, "") for lock in locks if mine is None or lock != mine.lock)
