"""The runs behind a result: each is trained once, resumed where it stopped, and read again."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nystromformer.data.plan import plan
from nystromformer.errors import UserError
from nystromformer.files import write_atomically
from nystromformer.model.conversion.contents import content_of_checkpoint
from nystromformer.settings import PretrainSettings
from nystromformer.settings.compose import compose
from nystromformer.settings.finetune import REVIEW_TASKS, FinetuneSettings
from nystromformer.settings.reproduce import ReproduceSettings
from nystromformer.tasks.finetune import finetune
from nystromformer.tasks.jobs import jobs_of, run_folder
from nystromformer.tasks.load import load_splits
from nystromformer.tasks.outcome import results_in, summarise
from nystromformer.training.checkpoint import saved_steps
from nystromformer.training.metrics import Event, MetricsLog
from nystromformer.training.pretrain import pretrain
from nystromformer.training.run_folder import RunFolder

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
        RunFolder(run).check(run)
        _check_start(run)
        if not _is_finished_on_its_data(run):
            pretrain(run)  # which also compares, and names what has changed
    return run


def _is_finished_on_its_data(run: PretrainSettings) -> bool:
    """Whether a run is over and its corpus is that which it was trained on; nothing is prepared for it."""
    folder = RunFolder(run)
    steps = saved_steps(folder.checkpoints)
    if not folder.report.exists() or not steps:
        return False
    state = json.loads((folder.checkpoints / f"step-{steps[-1]}" / "state.json").read_text(encoding="utf-8"))
    try:
        return state.get("data") == plan(run.preparation).folder.name
    except UserError as error:
        print(f"{folder.path} is read as it is: its corpus is not there to compare ({error})", flush=True)
        return True


def _check_start(run: PretrainSettings) -> None:
    """Note what a run starts from, or compare: the checkpoint may have been trained anew in place since."""
    if run.init.source == "scratch" or (now := content_of_checkpoint(str(run.init.path))) is None:
        return
    folder = RunFolder(run)
    path = folder.path / "start.json"
    if not saved_steps(folder.checkpoints):
        folder.path.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({"content": now}) + "\n")
    elif path.exists() and json.loads(path.read_text(encoding="utf-8"))["content"] != now:
        raise UserError(
            f"{folder.path} started from {run.init.path}, which holds other weights now: write "
            "runs_folder=OTHER to train it anew"
        )


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
        "learned later than runs of this size last, and its figures compare nothing yet.",
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


def percent(values: Sequence[float]) -> str:
    """A figure of several seeds as the tables show it: median (mean ± sample standard deviation)."""
    shown = [100 * value for value in values]
    if len(shown) == 1:
        return f"{shown[0]:.1f}"
    return f"{statistics.median(shown):.1f} ({statistics.fmean(shown):.1f} ± {statistics.stdev(shown):.1f})"


def task_of(words: Sequence[str]) -> str:
    """The option of the last word `task=…`."""
    return [word for word in words if word.startswith("task=")][-1].partition("=")[2]


def without_folders(settings: ReproduceSettings, text: str) -> str:
    """A reason as a page may tell it: where the files lie on this machine means nothing elsewhere."""
    text = text.replace(f" (seen from {Path.cwd()})", "")
    for name in ("glue_root", "runs_folder", "prepared_folder"):
        if folder := getattr(settings, name):
            text = text.replace(str(folder), name)
    return text
