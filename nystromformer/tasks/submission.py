"""GLUE's submission: a zip with one .tsv a test set, `index` and `prediction`, under the official names."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

from nystromformer.errors import UserError
from nystromformer.tasks.benchmarks import TASKS
from nystromformer.tasks.kinds.sequence import SequenceTask
from nystromformer.tasks.task import Examples

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
    """Zip what is in the folder and check it; lines on what is missing or not of the official size."""
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
