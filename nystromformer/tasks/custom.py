"""Classification or regression on files of one's own: .csv, .tsv or JSON lines with named columns."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from nystromformer.errors import UserError
from nystromformer.settings.finetune import TaskDataSettings
from nystromformer.tasks.definitions import Task, with_labels
from nystromformer.tasks.splits import (
    Examples,
    Splits,
    divide,
    label_of,
    number_of,
    read_examples,
    texts_of,
)
from nystromformer.tasks.table_files import TableFile, Unusable

_MOST_CLASSES = 1000


def custom_splits(task: Task, settings: TaskDataSettings) -> Splits:
    """Read the files; the classes are the labels of the training file, in order of their names.

    Raises:
        UserError: a file or column is missing, or a row is malformed or has a label not seen in training.
    """
    train_file = _open(settings.train, "train", task, settings)
    if not task.regression:
        task = with_labels(task, tuple(_labels_in(train_file, task)))
        train_file.skipped = []  # those are met again
    train = read_examples(train_file, task, labelled=True)
    others: dict[str, Examples] = {}
    skipped = list(train_file.skipped)
    for name, path in (("dev", settings.dev), ("test", settings.test)):
        if path is not None:
            file = _open(path, name, task, settings)
            others[name] = read_examples(file, task, labelled=True)
            skipped += file.skipped
    if "dev" not in others:
        if len(train) < 2 * max(task.num_labels, 1):
            raise UserError(
                f"{train_file.path} has {len(train)} rows, too few to hold some back: write data.dev=FILE"
            )
        others["dev"], train = divide(train, settings.dev_fraction, regression=task.regression)
    dev = {"dev": others.pop("dev")}
    return Splits(task, train, dev, others, str(settings.train), skipped)


def _open(path: str | None, name: str, task: Task, settings: TaskDataSettings) -> TableFile:
    return TableFile(
        Path(str(path)).expanduser(),
        (*task.texts, task.label),
        separator=settings.separator,
        quotes=settings.quotes,
        setting=f"data.{name}",
        skip=settings.malformed_rows == "skip",
    )


def _labels_in(file: TableFile, task: Task) -> list[str]:
    """The values of the label column, sorted."""
    found: dict[str, None] = {}
    for row in file.rows():
        try:
            texts_of(row, task, labelled=True)  # a row without text shows no class
            found[label_of(row, task)] = None
        except Unusable as error:
            file.reject(row, str(error))
    if len(found) > _MOST_CLASSES:
        raise UserError(
            f"{file.path} has {len(found):,} different labels in {task.label!r}: name the right "
            "column, or write task.regression=true"
        )
    return in_order(found)


def in_order(values: Iterable[str]) -> list[str]:
    """Numbers by size where all of them are numbers, else all of them by their letters."""
    numbers = {value: number_of(value) for value in values}
    if None in numbers.values():
        return sorted(numbers)
    return sorted(numbers, key=lambda value: (numbers[value], value))
