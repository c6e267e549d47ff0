"""What there is to train for a task: every cell of the grid with every seed, each a folder of its own.

runs/NAME/TASK/
    rate3e-05_batch32/
        seed-0/            settings.json, metrics.jsonl, checkpoints/ while it trains, model/
        seed-0.json        its result: the seed is done when this file is there
    summary.json, confusion.png, curve.png, model/      of the best
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nystromformer.errors import UserError
from nystromformer.files import write_atomically
from nystromformer.settings.compose import compose
from nystromformer.settings.finetune import GLUE_TASKS, FinetuneSettings, TaskSettings
from nystromformer.settings.mistakes import as_written

_FREE = frozenset(
    {
        "model.gradient_checkpointing",
        "training.eval_batch_size",
        "training.log_every",
        "training.max_skipped_steps",
        "training.micro_batch_size",
    }
)
"""Settings that may differ between two seeds of one table: they change where and how fast, not what."""


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

    def tidy(self) -> None:
        """Remove what a process that was killed after the result may have left."""
        shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        self.folder.with_suffix(".lock").unlink(missing_ok=True)

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


def identity(settings: FinetuneSettings, task: TaskSettings) -> dict[str, Any]:
    """Every setting that decides a seed's result, beside its rate, batch and seed."""
    found: dict[str, Any] = {
        "checkpoint": settings.checkpoint,
        "tokenizer_path": settings.tokenizer_path,
        "task.epochs": task.epochs,
        "task.metric": task.metric,
        "task.regression": task.regression,
    }
    for name in ("data", "model", "training"):
        found |= {f"{name}.{key}": value for key, value in asdict(getattr(settings, name)).items()}
    return {key: value for key, value in found.items() if key not in _FREE}


def forget_unstarted(task_folder: Path) -> None:
    """Remove a task's folder, and then an empty run's, where a mistake came before the first step."""
    if any(path.is_file() and path.suffix != ".lock" for path in task_folder.glob("*/**/*")):
        return
    shutil.rmtree(task_folder, ignore_errors=True)
    for folder in (task_folder.parent, task_folder.parent.parent):
        try:
            folder.rmdir()
        except OSError:  # holds something else, or is gone
            return


def check_or_note(task_folder: Path, now: dict[str, Any]) -> None:
    """Compare with the settings of what is in a task's folder, or write them down.

    Raises:
        UserError: it holds results of other settings, or cannot be written.
    """
    path = task_folder / "settings.json"
    try:
        has_results = any(task_folder.glob("rate*/seed-*.json")) or any(
            task_folder.glob("rate*/seed-*/*.jsonl")
        )
        if not path.exists() or not has_results:
            task_folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(now, indent=2) + "\n")
            return
        before = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"cannot write {task_folder} ({error.strerror}): write runs_folder=FOLDER with a folder "
            "that you may write to"
        ) from None
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise UserError(
                f"{task_folder} holds results with {key}={as_written(before.get(key))}, and now {key}="
                f"{as_written(now.get(key))}: write {key}={as_written(before.get(key))} to add to "
                "them, or name=OTHER for a new run"
            )
