"""What there is to train for a task: every cell of the grid with every seed, each a folder of its own.

runs/NAME/TASK/
    settings.json          what the results are of, see identity.py
    rate3e-05_batch32/
        seed-0/            metrics.jsonl, checkpoints/ while it trains, model/
        seed-0.json        its result: the seed is done when this file is there
    summary.json, confusion.png, curve.png, model/      of the best
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from nystromformer.settings.compose import compose
from nystromformer.settings.finetune import FinetuneSettings, TaskSettings
from nystromformer.tasks.benchmarks import GLUE_TASKS


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
