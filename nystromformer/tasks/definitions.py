"""What each task is: GLUE's columns, labels, metrics and file names, and the same for the others."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nystromformer.errors import UserError
from nystromformer.settings.finetune import GLUE_TASKS, TASK_NAMES, TaskDataSettings, TaskSettings


@dataclass(frozen=True)
class Task:
    """One thing to learn."""

    name: str
    title: str
    texts: tuple[str, ...]
    """Names of the columns with the text, or with the two texts of a pair."""
    label: str
    """Name of the column with the label."""
    values: tuple[str, ...] = ()
    """What stands in that column, by label id; empty for regression, and where the data tell."""
    labels: tuple[str, ...] = ()
    """Names of the classes, by label id; `values` again where they are names already."""
    metrics: tuple[str, ...] = ("accuracy",)
    score: tuple[str, ...] = ("accuracy",)
    """The metrics whose mean is the task's figure in GLUE's average; the best checkpoint has the highest."""
    regression: bool = False
    folder: str = ""
    """Its folder in GLUE's original layout."""
    headless: tuple[str, ...] = ()
    """Names for the columns of labelled files that have no header line."""
    dev_files: tuple[tuple[str, str], ...] = (("dev", "dev.tsv"),)
    """Name and file of each held-out set."""
    test_files: tuple[tuple[str, str], ...] = (("test", "test.tsv"),)
    submissions: tuple[tuple[str, str], ...] = ()
    """Name of each unlabelled test set and its file in a submission."""
    hub: tuple[str, str | None] = ("nyu-mll/glue", None)
    """Repository and configuration on the hub."""
    hub_texts: tuple[str, ...] = ()
    """Names of the text columns there, where they are other ones."""

    @property
    def num_labels(self) -> int:
        return 1 if self.regression else len(self.labels)

    @property
    def is_glue(self) -> bool:
        return self.name in GLUE_TASKS


_ZERO_ONE = ("0", "1")
_ENTAILMENT = ("entailment", "not_entailment")
_NLI = ("entailment", "neutral", "contradiction")
_PAIR = ("sentence1", "sentence2")


def _glue(name: str, title: str, folder: str, texts: tuple[str, ...], label: str = "label", **more) -> Task:
    more.setdefault("submissions", (("test", f"{folder}.tsv"),))
    more.setdefault("labels", more.get("values", ()))
    return Task(name, title, texts, label, folder=folder, hub=("nyu-mll/glue", name), **more)


_F1 = {"metrics": ("accuracy", "f1"), "score": ("accuracy", "f1")}

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _glue(
            "cola", "CoLA", "CoLA", ("sentence",),
            values=_ZERO_ONE, labels=("unacceptable", "acceptable"),
            metrics=("matthews", "accuracy"), score=("matthews",),
            headless=("source", "label", "star", "sentence"),
        ),
        _glue("sst2", "SST-2", "SST-2", ("sentence",), values=_ZERO_ONE, labels=("negative", "positive")),
        _glue(
            "mrpc", "MRPC", "MRPC", ("#1 String", "#2 String"), "Quality",
            values=_ZERO_ONE, labels=("not_equivalent", "equivalent"), hub_texts=_PAIR, **_F1,
        ),
        _glue(
            "stsb", "STS-B", "STS-B", _PAIR, "score",
            regression=True, metrics=("pearson", "spearman"), score=("pearson", "spearman"),
        ),
        _glue(
            "qqp", "QQP", "QQP", ("question1", "question2"), "is_duplicate",
            values=_ZERO_ONE, labels=("not_duplicate", "duplicate"), **_F1,
        ),
        _glue(
            "mnli", "MNLI", "MNLI", _PAIR, "gold_label", values=_NLI,
            dev_files=(("matched", "dev_matched.tsv"), ("mismatched", "dev_mismatched.tsv")),
            test_files=(("matched", "test_matched.tsv"), ("mismatched", "test_mismatched.tsv")),
            submissions=(("matched", "MNLI-m.tsv"), ("mismatched", "MNLI-mm.tsv"), ("diagnostic", "AX.tsv")),
        ),
        _glue("qnli", "QNLI", "QNLI", ("question", "sentence"), values=_ENTAILMENT),
        _glue("rte", "RTE", "RTE", _PAIR, values=_ENTAILMENT),
        _glue("wnli", "WNLI", "WNLI", _PAIR, values=_ZERO_ONE, labels=("not_entailment", "entailment")),
        Task(
            "imdb", "IMDB", ("text",), "label", _ZERO_ONE, ("negative", "positive"),
            hub=("stanfordnlp/imdb", None),
        ),
        Task(
            "rotten_tomatoes", "Rotten Tomatoes", ("text",), "label", _ZERO_ONE, ("negative", "positive"),
            hub=("cornell-movie-review-data/rotten_tomatoes", None),
        ),
    )
}  # fmt: skip


def task_named(name: str) -> Task:
    """The definition of a task of TASKS; raises UserError for another name."""
    if name not in TASKS:
        raise UserError(f"{name!r} is no task: write one of {', '.join(TASK_NAMES)}")
    return TASKS[name]


def custom_task(settings: TaskSettings, data: TaskDataSettings) -> Task:
    """A task of the user's own; its classes are known once its training file is read."""
    texts = (data.text,) if data.text_pair is None else (data.text, data.text_pair)
    metrics = ("pearson", "spearman") if settings.regression else ("accuracy", "f1_macro", "matthews")
    chosen = "f1_macro" if settings.metric == "f1" else settings.metric
    return Task(
        "custom", "custom", texts, data.label,
        metrics=metrics, score=(chosen,), regression=settings.regression,
    )  # fmt: skip


def with_labels(task: Task, values: tuple[str, ...]) -> Task:
    """The same task with the classes that its data turned out to have."""
    return replace(task, values=values, labels=values)
