"""Classification or regression on files of one's own: .csv, .tsv or JSON lines with named columns."""

from __future__ import annotations

from pathlib import Path

from nystromformer.errors import UserError
from nystromformer.settings.finetune import TaskDataSettings
from nystromformer.tasks.definitions import Task, with_labels
from nystromformer.tasks.splits import Examples, Splits, divide, read_examples
from nystromformer.tasks.table_files import TableFile


def custom_splits(task: Task, settings: TaskDataSettings) -> Splits:
    """Read the files; the classes are the labels of the training file, in order of their names.

    Raises:
        UserError: a file or column is missing, or a row is malformed or has a label not seen in training.
    """
    skip = settings.malformed_rows == "skip"
    columns = (*task.texts, task.label)
    train_file = TableFile(Path(str(settings.train)).expanduser(), columns, setting="data.train", skip=skip)
    if not task.regression:
        task = with_labels(task, tuple(_labels_in(train_file, task)))
        train_file.skipped = 0
    train = read_examples(train_file, task, labelled=True)
    others: dict[str, Examples] = {}
    skipped = train_file.skipped
    for name, path in (("dev", settings.dev), ("test", settings.test)):
        if path is not None:
            file = TableFile(Path(path).expanduser(), columns, setting=f"data.{name}", skip=skip)
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


def _labels_in(file: TableFile, task: Task) -> list[str]:
    """The values of the label column, sorted: numbers by size, words by their letters."""
    found: dict[str, None] = {}
    for row in file.rows():
        value = row.cells.get(task.label, "").strip()
        if value:
            found[value] = None
        else:
            raise UserError(f"{row.place} has no label in {task.label!r}: mend the row")
    if len(found) > 1000:
        raise UserError(
            f"{file.path} has {len(found):,} different labels in {task.label!r}: name the right "
            "column, or write task.regression=true"
        )
    if all(value.lstrip("-").isdigit() for value in found):
        return sorted(found, key=int)
    return sorted(found)
