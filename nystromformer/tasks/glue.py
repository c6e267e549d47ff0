"""GLUE's nine tasks, from the hub or from a folder in GLUE's original layout.

    ROOT/SST-2/train.tsv, dev.tsv, test.tsv        a header line, no quoting
    ROOT/CoLA/train.tsv, dev.tsv                   no header; test.tsv has one
    ROOT/MNLI/train.tsv, dev_matched.tsv …         more columns than are needed
    ROOT/diagnostic/diagnostic.tsv                 MNLI's model answers it for a submission

train and dev are labelled. A test file has an `index` column and no labels; where it is missing, there is
nothing to submit for that task.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nystromformer.errors import UserError
from nystromformer.settings.finetune import TaskDataSettings
from nystromformer.tasks.definitions import Task
from nystromformer.tasks.splits import Examples, Splits, Texts, read_examples
from nystromformer.tasks.table_files import TableFile

_DIAGNOSTIC = "diagnostic/diagnostic.tsv"


def glue_from_folder(task: Task, settings: TaskDataSettings) -> Splits:
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
    skip = settings.malformed_rows == "skip"
    files = [_labelled(folder / "train.tsv", task, skip=skip)]
    train = read_examples(files[0], task, labelled=True)
    dev = {}
    for name, file_name in task.dev_files:
        files.append(_labelled(folder / file_name, task, skip=skip))
        dev[name] = read_examples(files[-1], task, labelled=True)
    tests = [(name, folder / file) for name, file in task.test_files]
    if task.name == "mnli":
        tests.append(("diagnostic", root / _DIAGNOSTIC))
    test = {}
    for name, path in tests:
        if path.exists():
            files.append(TableFile(path, task.texts, quotes=False, setting="data.root", skip=skip))
            test[name] = _unlabelled(files[-1], task)
    return Splits(task, train, dev, test, str(folder), [row for file in files for row in file.skipped])


def in_glues_layout(path: Path, task: Task) -> bool:
    """Whether a file has the name of one of the task's own, which are written without quoting."""
    own = {"train.tsv", *(file for _, file in (*task.dev_files, *task.test_files)), Path(_DIAGNOSTIC).name}
    return task.is_glue and path.name in own


def _labelled(path: Path, task: Task, *, skip: bool) -> TableFile:
    columns = (*task.texts, task.label)
    return TableFile(path, columns, headless=task.headless, quotes=False, setting="data.root", skip=skip)


def _unlabelled(file: TableFile, task: Task) -> Examples:
    # MNLI's files call their first column index, the diagnostic set's too; a file without one is counted.
    id_column = next((name for name in ("index", "id") if file.has(name)), None)
    if id_column:
        file.require(id_column)
    return read_examples(file, task, labelled=False, id_column=id_column)


def glue_from_hub(task: Task) -> Splits:
    """Load `nyu-mll/glue` by the datasets library, from the hub or its cache.

    Raises:
        UserError: it cannot be loaded.
    """
    repository, configuration = task.hub
    loaded = load_from_hub(repository, configuration)
    several = len(task.dev_files) > 1
    dev = {
        name: examples_of(loaded[f"validation_{name}" if several else "validation"], task)
        for name, _ in task.dev_files
    }
    test = {
        name: examples_of(loaded[f"test_{name}" if several else "test"], task) for name, _ in task.test_files
    }
    if task.name == "mnli":
        test["diagnostic"] = examples_of(load_from_hub(repository, "ax")["test"], task)
    where = f"{repository}, {configuration}" if configuration else repository
    return Splits(task, examples_of(loaded["train"], task), dev, test, f"{where} on the hub")


def load_from_hub(repository: str, configuration: str | None) -> Any:
    """A DatasetDict; raises UserError with what to do without the network."""
    import datasets

    try:
        return datasets.load_dataset(repository, configuration)
    except Exception as error:  # the library and the hub's client raise a dozen kinds
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{repository} cannot be loaded from the hub ({first_line}): connect to the network, or write "
            "data.root=FOLDER with GLUE's TSV files (imdb and rotten_tomatoes: data.source=samples)"
        ) from None


def examples_of(rows: Any, task: Task) -> Examples:
    """A split of the hub; label −1 in any row says that it has none."""
    columns = task.hub_texts or task.texts
    texts: list[Texts] = list(
        zip(*([text.strip() for text in rows[column]] for column in columns), strict=True)
    )
    values = list(rows["label"])
    labels = None if any(value is None or value == -1 for value in values) else [float(v) for v in values]
    names = rows.column_names
    ids = [str(number) for number in (rows["idx"] if "idx" in names else range(len(values)))]
    return Examples(texts, labels, ids)
