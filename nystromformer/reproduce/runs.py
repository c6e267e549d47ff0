"""The runs behind a result: each is trained once, resumed where it stopped, and read again.

A run has the name that its words give it and a digest of its sizes, so that another size is another run. One
of an earlier version, whose name has no digest, is taken where it is the same run.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from nystromformer.errors import UserError
from nystromformer.reproduce.result import portable
from nystromformer.settings import PretrainSettings
from nystromformer.settings.compose import compose
from nystromformer.settings.finetune import FinetuneSettings
from nystromformer.settings.identity import DECIDES
from nystromformer.settings.reproduce import LENGTHENED, ReproduceSettings
from nystromformer.settings.schema import settings_of
from nystromformer.tasks.benchmarks import REVIEW_TASKS
from nystromformer.tasks.finetune import finetune
from nystromformer.tasks.identity import compare, identity
from nystromformer.tasks.jobs import has_traces, jobs_of, run_folder
from nystromformer.tasks.reading import load_splits
from nystromformer.tasks.results import kept_answers, results_in, summarise
from nystromformer.training.metrics import Event, MetricsLog
from nystromformer.training.pretrain import pretrain
from nystromformer.training.run_data import changed_start, is_over_on_its_data
from nystromformer.training.run_folder import RunFolder
from nystromformer.training.start import settled

Seeds = list[dict[str, Any]]
"""What the seeds of a task left, one dictionary a seed, with the `answers` that it kept."""


_earlier: ContextVar[list[float] | None] = ContextVar("earlier", default=None)


@contextmanager
def earlier_seconds() -> Iterator[list[float]]:
    """Collects what the runs that are read within took before: the seconds of each."""
    found: list[float] = []
    token = _earlier.set(found)
    try:
        yield found
    finally:
        _earlier.reset(token)


def note_earlier(seconds: float) -> None:
    """Tell of a run that is read, or goes on, what it took before."""
    if (found := _earlier.get()) is not None:
        found.append(seconds)


def _digest(settings: ReproduceSettings, words: Sequence[str], schema: type) -> str:
    """Of the words that decide what is computed, without the machine's folders; empty without any."""
    roles = {setting.key: setting.role for setting in settings_of(schema)}
    sizes = []
    for word in words:
        key = word.partition("=")[0]
        if key not in ("name", "experiment", "task") and roles.get(key) in {*DECIDES, None}:
            sizes.append(portable(word.replace(f"{settings.runs_folder}/", "")))
    if not sizes:
        return ""
    return "_" + hashlib.blake2b(json.dumps(sizes).encode(), digest_size=4).hexdigest()


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
    if not run.data.sentence_order:
        raise UserError("data.sentence_order=false: tables and figures show sentence order: leave it out")
    if RunFolder(run).config.exists() and _fits(run):
        return run
    name = run.name + _digest(settings, [*words, *settings.overrides], PretrainSettings)
    return replace(run, name=name)


def _fits(run: PretrainSettings) -> bool:
    try:
        RunFolder(run).check(run)
    except UserError:
        return False
    return True


def lengthened(settings: ReproduceSettings, name: str) -> ReproduceSettings:
    """The settings with the runs behind a result as long as `minutes=` says; the same without it.

    Raises:
        UserError: a word of the runs is wrong.
    """
    section = getattr(settings.scale, name, None)
    if settings.minutes is None or name not in LENGTHENED or section is None:
        return settings
    factor = settings.minutes / section.usual_minutes
    longer = {
        one.name: [*words, *_lengthened(composed_run(settings, with_start(words)), factor)]
        for one in fields(section)
        if isinstance(words := getattr(section, one.name), list) and _has_steps(words)
    }
    scale = replace(settings.scale, **{name: replace(section, **longer)})
    return replace(settings, scale=scale)


def with_start(words: Sequence[str]) -> list[str]:
    """Words of a run that can be composed, where the weights it starts from are filled in later."""
    return [*words, *(["init.path=ANY"] if "init=checkpoint" in words else [])]


def _has_steps(words: Sequence[object]) -> bool:
    """Whether a list of a section says how long a run is: the other lists are of sizes."""
    return any(str(word).startswith("training.steps=") for word in words)


def _lengthened(run: PretrainSettings, factor: float) -> list[str]:
    training = run.training
    return [
        *(
            f"training.{name}={max(round(factor * getattr(training, name)), least)}"
            for name, least in (("steps", 1), ("warmup_steps", 0), ("validate_every", 1))
        ),
        f"name={run.name}_times_{factor:.3g}".replace(".", "_"),
    ]


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
        note_earlier(max((event["seconds"] for event in validations(run)), default=0.0))
        if changed := changed_start(folder, run):
            raise UserError(f"{changed}: write runs_folder=OTHER to train it anew")
        if not is_over_on_its_data(folder, run):
            pretrain(run)  # which also compares, and names what has changed
    return run


def validations(run: PretrainSettings) -> list[Event]:
    """The run's validation events, in order of their steps."""
    return MetricsLog(RunFolder(run).metrics).events("validation")


def at_chance(sop_accuracies: Sequence[float], *, rows: int) -> str:
    """A paragraph that says so where sentence order is within two standard errors of a coin's ½."""
    band = 2 * math.sqrt(0.25 / rows)
    if any(abs(accuracy - 0.5) > band for accuracy in sop_accuracies):
        return ""
    return (
        f"Sentence order is at chance (0.5 ± {band:.3f}, two standard errors of {rows:,} rows): it is "
        "learned later than runs of this size last (`minutes=` makes them longer), and its figures compare "
        "nothing yet."
    )


def finetune_run(
    settings: ReproduceSettings, words: Sequence[str], checkpoint: str, *, name: str
) -> FinetuneSettings:
    """The settings of `nystromformer finetune WORDS` behind a result."""
    run = composed_finetune(settings, [*words, f"checkpoint={checkpoint}", f"name={name}"])
    folder = run_folder(run) / run.task.name
    if has_traces(folder):
        try:
            compare(folder, identity(run, run.task))
        except UserError:
            pass  # of other sizes
        else:
            return run
    start = "/".join(Path(checkpoint).parts[-2:])
    digest = _digest(settings, [*words, f"checkpoint={start}"], FinetuneSettings)
    return replace(run, name=f"{name}_{run.task.name}{digest}")


def finetuned(settings: ReproduceSettings, words: Sequence[str], checkpoint: str, *, name: str) -> Seeds:
    """Run `nystromformer finetune WORDS` for the seeds that are not finished; all seeds of the best cell.

    Raises:
        UserError: a word is wrong, or a seed cannot be trained.
    """
    run = finetune_run(settings, words, checkpoint, name=name)
    for job in jobs_of(run, run.task):
        if job.finished:
            note_earlier(json.loads(job.result.read_text(encoding="utf-8"))["seconds"])
    with _in_terms_of_reproduce():
        finetune(run)
    if waiting := [job.label for job in jobs_of(run, run.task) if not job.finished]:
        raise UserError(f"another command still trains {', '.join(waiting)}: the same command again after it")
    folder = run_folder(run) / run.task.name
    best = summarise(folder)["best"]
    cell = (best["learning_rate"], best["batch_size"])
    wanted = range(run.first_seed, run.first_seed + run.seeds)
    return [
        {**result, "answers": kept_answers(folder, result)}
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
    for name in ("glue_root", "lra_root", "collection", "runs_folder", "prepared_folder"):
        if folder := getattr(settings, name):
            text = text.replace(str(folder), name)
    return text
