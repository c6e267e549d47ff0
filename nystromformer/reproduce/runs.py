"""The runs behind a result: each is trained once, resumed where it stopped, and read again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nystromformer.errors import UserError
from nystromformer.settings import PretrainSettings
from nystromformer.settings.compose import compose
from nystromformer.settings.finetune import FinetuneSettings
from nystromformer.settings.reproduce import ReproduceSettings
from nystromformer.tasks.benchmarks import REVIEW_TASKS
from nystromformer.tasks.finetune import finetune
from nystromformer.tasks.jobs import jobs_of, run_folder
from nystromformer.tasks.reading import load_splits
from nystromformer.tasks.results import results_in, summarise
from nystromformer.training.metrics import Event, MetricsLog
from nystromformer.training.pretrain import pretrain
from nystromformer.training.run_data import changed_start, is_over_on_its_data
from nystromformer.training.run_folder import RunFolder
from nystromformer.training.start import settled

Seeds = list[dict[str, Any]]
"""What the seeds of a task left, one dictionary a seed."""


def composed_run(settings: ReproduceSettings, words: Sequence[str]) -> PretrainSettings:
    """The settings of `nystromformer pretrain WORDS` in the result's own folders."""
    run = compose(
        "pretrain",
        [
            *words,
            f"runs_folder={settings.runs_folder}",
            f"data.folder={settings.prepared_folder}",
            *settings.overrides,
        ],
    )
    assert isinstance(run, PretrainSettings)
    return run


def finished_run(settings: ReproduceSettings, words: Sequence[str]) -> PretrainSettings:
    """Train what `nystromformer pretrain WORDS` trains, or go on; a finished run of the same data is read.

    Raises:
        UserError: it is of other settings, data or weights, or cannot be trained.
    """
    run = composed_run(settings, words)
    with _in_terms_of_reproduce():
        run = settled(run)
        folder = RunFolder(run)
        folder.check(run)
        if changed := changed_start(folder, run):
            raise UserError(f"{changed}: write runs_folder=OTHER to train it anew")
        if not is_over_on_its_data(folder, run):
            pretrain(run)  # which also compares, and names what has changed
    return run


def validations(run: PretrainSettings) -> list[Event]:
    """The run's validation events, in order of their steps."""
    return MetricsLog(RunFolder(run).metrics).events("validation")


def at_chance(sop_accuracies: Sequence[float], *, rows: int) -> list[str]:
    """Lines that say so where sentence order is within two standard errors of a coin's ½."""
    band = 2 * math.sqrt(0.25 / rows)
    if any(abs(accuracy - 0.5) > band for accuracy in sop_accuracies):
        return []
    return [
        "",
        f"Sentence order is at chance (0.5 ± {band:.3f}, two standard errors of {rows:,} rows): it is "
        "learned later than runs of this size last (`minutes=` makes them longer), and its figures compare "
        "nothing yet.",
    ]


def finetuned(settings: ReproduceSettings, words: Sequence[str], checkpoint: str, *, name: str) -> Seeds:
    """Run `nystromformer finetune WORDS` for the seeds that are not finished; all seeds of the best cell.

    Raises:
        UserError: a word is wrong, or a seed cannot be trained.
    """
    run = composed_finetune(settings, [*words, f"checkpoint={checkpoint}", f"name={name}"])
    with _in_terms_of_reproduce():
        finetune(run)
    if waiting := [job.label for job in jobs_of(run, run.task) if not job.finished]:
        raise UserError(f"another command still trains {', '.join(waiting)}: the same command again after it")
    folder = run_folder(run) / run.task.name
    best = summarise(folder)["best"]
    cell = (best["learning_rate"], best["batch_size"])
    wanted = range(run.first_seed, run.first_seed + run.seeds)
    return [
        result
        for result in results_in(folder)
        if result["seed"] in wanted and (result["learning_rate"], result["batch_size"]) == cell
    ]


def why_absent(settings: ReproduceSettings, words: Sequence[str]) -> str | None:
    """Why a task has no data, in a line that names no folder of this machine; None if it has.

    Raises:
        UserError: a word is wrong.
    """
    run = composed_finetune(settings, [*words, "checkpoint=any"])
    try:
        load_splits(run.task, run.data)
    except UserError as error:
        return without_folders(settings, str(error))
    return None


def composed_finetune(settings: ReproduceSettings, words: Sequence[str]) -> FinetuneSettings:
    """The settings of `nystromformer finetune WORDS` in the result's own folder and from its data."""
    task = task_of(words)
    root = [f"data.root={settings.glue_root}"] if settings.glue_root and task not in REVIEW_TASKS else []
    run = compose("finetune", [*words, *root, f"runs_folder={settings.runs_folder}"])
    assert isinstance(run, FinetuneSettings)
    return run


@contextmanager
def _in_terms_of_reproduce() -> Iterator[None]:
    """The names of the runs behind a result are its own: a new run is one in another folder."""
    try:
        yield
    except UserError as error:
        if "name=OTHER" not in str(error):
            raise
        raise UserError(f"{error} (here, of `reproduce`: runs_folder=OTHER)") from None


def task_of(words: Sequence[str]) -> str:
    """The option of the last word `task=…`."""
    return [word for word in words if word.startswith("task=")][-1].partition("=")[2]


def without_folders(settings: ReproduceSettings, text: str) -> str:
    """A reason as a page may tell it: where the files lie on this machine means nothing elsewhere."""
    text = text.replace(f" (seen from {Path.cwd()})", "")
    for name in ("glue_root", "lra_root", "runs_folder", "prepared_folder"):
        if folder := getattr(settings, name):
            text = text.replace(str(folder), name)
    return text
