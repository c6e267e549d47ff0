"""Texts with label ids: what every source of a task's data becomes, and what is checked about it."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from nystromformer.data.documents import text_hash
from nystromformer.errors import UserError
from nystromformer.tasks.definitions import Task
from nystromformer.tasks.table_files import Row, TableFile, Unusable, listed, shortened

Texts = tuple[str, ...]
"""One text, or the two of a pair."""
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


@dataclass
class Examples:
    """Examples in the order of their file."""

    texts: list[Texts]
    labels: list[float] | None
    """Label ids, or numbers for regression; None where there are none."""
    ids: list[str]
    """What a submission calls each."""

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Iterable[int]) -> Examples:
        chosen = list(indices)
        return Examples(
            [self.texts[i] for i in chosen],
            None if self.labels is None else [self.labels[i] for i in chosen],
            [self.ids[i] for i in chosen],
        )


@dataclass
class Splits:
    """All data of one task."""

    task: Task
    train: Examples
    dev: dict[str, Examples]
    """Held-out sets by name, labelled: they choose the best checkpoint."""
    test: dict[str, Examples] = field(default_factory=dict)
    """Labelled ones are looked at once, at the end; those without labels are for a submission."""
    origin: str = ""
    """Where they came from, for people."""
    skipped: list[str] = field(default_factory=list)
    """Rows that were left out, each with its place and the reason."""


def read_examples(
    file: TableFile,
    task: Task,
    *,
    labelled: bool,
    label_ids: dict[str, int] | None = None,
    id_column: str | None = None,
) -> Examples:
    """All rows of a file.

    Args:
        labelled: whether the label column is to be read.
        label_ids: id of each value of the label column; `task.values` in order when absent.
        id_column: what names a row; its number, from 0, when absent.

    Raises:
        Malformed: naming file and line, for a row without text or with a label that cannot be used, unless
            the file skips such rows.
    """
    label_ids = label_ids or {value: number for number, value in enumerate(task.values)}
    texts: list[Texts] = []
    labels: list[float] = []
    ids: list[str] = []
    for row in file.rows():
        try:
            cells = texts_of(row, task, labelled=labelled)
            if labelled:
                labels.append(_label(row, task, label_ids))
        except Unusable as error:
            file.reject(row, str(error))
            continue
        texts.append(cells)
        ids.append(row.cells[id_column] if id_column else str(len(ids)))
    return Examples(texts, labels if labelled else None, ids)


def texts_of(row: Row, task: Task, *, labelled: bool) -> Texts:
    """The texts of a row; raises Unusable for none, but a test row is to be answered all the same."""
    texts = tuple(row.text(column) for column in task.texts)
    if labelled and not any(texts):
        raise Unusable(f"is malformed (no text in {' and '.join(map(repr, task.texts))})")
    return texts


def label_of(row: Row, task: Task) -> str:
    """The label as it is written; raises Unusable where there is none."""
    if label := row.label(task.label):
        return label
    raise Unusable(f"has no label in {task.label!r}")


def _label(row: Row, task: Task, label_ids: dict[str, int]) -> float:
    text = label_of(row, task)
    if not task.regression:
        if text not in label_ids:
            raise Unusable(f"has the label {shortened(text)}, which is none of {listed(label_ids)}")
        return label_ids[text]
    number = number_of(text)
    if number is None:
        raise Unusable(f"has {shortened(text)} in {task.label!r}, which is no number")
    return number


def number_of(text: str) -> float | None:
    """The finite number that a text is, in ASCII digits as any program writes them, or None.

    Python's own `float` also takes 1_000, ２, nan and infinity, which other programs do not, or not as
    numbers to learn.
    """
    number = float(text) if _NUMBER.fullmatch(text) else math.inf
    return number if math.isfinite(number) else None


def check(splits: Splits) -> Splits:
    """Raise UserError for data that nothing can be learned from or measured on."""
    task = splits.task
    parts = {
        "training examples": splits.train,
        **{f"{name} examples": part for name, part in splits.dev.items()},
    }
    for name, part in parts.items():
        if not len(part):
            raise UserError(f"{splits.origin}: there are no {name} of {task.title}: bring some")
    if task.regression:
        return splits
    if task.num_labels < 2:
        raise UserError(
            f"{splits.origin}: all examples have one label, {shortened(task.labels[0])}: bring another class"
        )
    seen = Counter(splits.train.labels or [])
    for number, name in enumerate(task.labels):
        if not seen[number]:
            raise UserError(
                f"{splits.origin}: no training example has the label {shortened(name)}: bring some, or take "
                "more examples"
            )
    return splits


def limited(splits: Splits, most_train: int | None, most_dev: int | None) -> Splits:
    """The same with at most so many examples, those with the lowest hash of each class."""
    return replace(
        splits,
        train=_at_most(splits.train, most_train, splits.task),
        dev={name: _at_most(part, most_dev, splits.task) for name, part in splits.dev.items()},
    )


def _at_most(examples: Examples, most: int | None, task: Task) -> Examples:
    if most is None or len(examples) <= most:
        return examples
    kept, _ = divide(examples, most / len(examples), regression=task.regression, at_most=most)
    return kept


def divide(
    examples: Examples, share: float, *, regression: bool = False, at_most: int | None = None
) -> tuple[Examples, Examples]:
    """The `share` of each class whose texts have the lowest hashes, and the rest, both in file order.

    Depends on nothing but the texts: the same for any seed and any order of the file. Equal texts of one
    class go to the same side, unless the border falls between them.
    """
    labels = examples.labels or []
    classes: dict[float, list[int]] = defaultdict(list)
    for index in range(len(examples)):
        classes[0 if regression else labels[index]].append(index)
    chosen: set[int] = set()
    for members in classes.values():
        members.sort(key=lambda index: (text_hash("\t".join(examples.texts[index])), index))
        chosen.update(members[: max(round(share * len(members)), 1)])
    picked = sorted(chosen)
    if at_most is not None:
        picked = picked[:at_most] if len(classes) > at_most else _trimmed(picked, at_most, labels)
    inside = set(picked)
    return examples.take(picked), examples.take(i for i in range(len(examples)) if i not in inside)


def _trimmed(picked: list[int], at_most: int, labels: Sequence[float]) -> list[int]:
    """Rounding may have taken a few too many: the last ones of classes that have others go."""
    counts = Counter(labels[index] for index in picked)
    kept = list(picked)
    for index in reversed(picked):
        if len(kept) <= at_most:
            break
        if counts[labels[index]] > 1:
            counts[labels[index]] -= 1
            kept.remove(index)
    return kept
