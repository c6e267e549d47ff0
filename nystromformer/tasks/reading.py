"""From files to examples, and what is done to all data before training: checked, cut, divided."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from nystromformer.data.documents import text_hash
from nystromformer.errors import UserError
from nystromformer.settings.finetune import EvaluateSettings, TaskDataSettings, TaskSettings, kind_named
from nystromformer.tasks.hub import as_files
from nystromformer.tasks.row_files import Fault, Row, Unusable, listed, shortened
from nystromformer.tasks.table_files import TableFile
from nystromformer.tasks.task import Examples, Splits, Task, Texts

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


class ExampleFile(Protocol):
    """A file of examples, of a table's rows or of another kind."""

    path: Path
    skipped: list[str]
    """Place and reason of what was left out."""


F = TypeVar("F", bound=ExampleFile)


def load_splits(settings: TaskSettings, data: TaskDataSettings) -> Splits:
    """Read, check and, where asked, cut the data of one task.

    Raises:
        UserError: something is missing, malformed or empty.
    """
    with as_files(data) as (files, names):
        try:
            splits = check(kind_named(settings.kind).load(settings, files))
        except UserError as error:
            raise type(error)(_renamed(str(error), names)) from None
    splits.origin = _renamed(splits.origin, names)
    splits.skipped = [_renamed(row, names) for row in splits.skipped]
    return limited(splits, data.max_train_examples, data.max_dev_examples)


def _renamed(text: str, names: Mapping[str, str]) -> str:
    """A message about files that a split of the hub is in as one about that split."""
    for path, name in names.items():
        text = text.replace(path, name)
    return text


def own_splits(
    task: Task, data: TaskDataSettings, opened: Callable[[str, str], F], read: Callable[[F], Examples]
) -> Splits:
    """The files of data.train, data.dev and data.test; without a second, a part of the first is held out.

    Args:
        opened: a file, from its path and the setting that names it.

    Raises:
        UserError: of opening and reading; or there are too few examples to hold some back.
    """
    parts: dict[str, Examples] = {}
    skipped: list[str] = []
    for name in ("train", "dev", "test"):
        if (path := getattr(data, name)) is not None:
            file = opened(path, f"data.{name}")
            parts[name] = read(file)
            skipped += file.skipped
            if name == "train":
                place = file.path
    train = parts.pop("train")
    if "dev" not in parts:
        strata = task.strata(train.labels or [])
        if len(train) < 2 * max(len(set(strata)), 1):
            raise UserError(f"{place} has {len(train)} rows, too few to hold some back: write data.dev=FILE")
        parts["dev"], train = divide(train, data.dev_fraction, strata)
    return Splits(task, train, {"dev": parts.pop("dev")}, parts, str(data.train), skipped)


def asked_table(settings: EvaluateSettings, columns: Sequence[str]) -> TableFile:
    """A table to predict or evaluate; raises UserError where it lacks a column."""
    return TableFile(
        Path(str(settings.file)), columns, separator=settings.separator, quotes=settings.quotes,
        report=settings.reported,
    )  # fmt: skip


def own_table(path: str, columns: Sequence[str], setting: str, data: TaskDataSettings) -> TableFile:
    """A table of the user's own, read as `data` says; raises UserError where it lacks a column."""
    return TableFile(
        Path(path),
        columns,
        separator=data.separator,
        quotes=data.quotes,
        setting=setting,
        skip=data.malformed_rows == "skip",
    )


Found = tuple[Texts, Any, str]
"""Texts, label and name of an example."""


def usable_rows(
    file: TableFile,
    texts: Callable[[Row], Texts],
    label: Callable[[Row], Any] | None,
    id_column: str | None = None,
) -> Iterator[Found | Fault]:
    """Texts, label and name of each row of a table, and the rows that the file reports.

    Args:
        texts, label: what a row holds, raising Unusable for one that cannot be used.
        id_column: what names a row; its number, from 0, where there is none.

    Raises:
        Malformed: naming file and line, for a row that cannot be used, unless the file skips or reports it.
    """

    def found(row: Row, number: int) -> Iterator[Found]:
        name = row.cells.get(id_column) if id_column else None
        yield texts(row), label(row) if label else None, str(number) if name in (None, "") else str(name)

    return file.usable(file.rows_and_faults(), found)


def gathered(rows: Iterable[Found | Fault], *, labelled: bool) -> Examples:
    """The rows as examples; faults are for `in_parts`."""
    examples = Examples([], [] if labelled else None, [])
    for row in rows:
        assert not isinstance(row, Fault), f"nobody asked to be told of {row}"
        texts, label, name = row
        examples.texts.append(texts)
        examples.ids.append(name)
        if examples.labels is not None:
            examples.labels.append(label)
    return examples


def in_parts(rows: Iterator[Found | Fault], at_once: int, *, labelled: bool) -> Iterator[Examples | Fault]:
    """The rows as examples, at most `at_once` of them at a time, and the faults where they stand."""
    return parts_of(rows, at_once, lambda part: gathered(part, labelled=labelled))


R = TypeVar("R")


def parts_of(
    rows: Iterable[R | Fault], at_once: int, gather: Callable[[list[R]], Examples]
) -> Iterator[Examples | Fault]:
    """The same for rows that are gathered in another way."""
    part: list[R] = []
    for row in rows:
        if not isinstance(row, Fault):
            part.append(row)
            if len(part) < at_once:
                continue
        if part:
            yield gather(part)
            part = []
        if isinstance(row, Fault):
            yield row
    if part:
        yield gather(part)


def number_of(text: str) -> float | None:
    """The finite number that a text is, in ASCII digits as any program writes them, or None.

    Python's own `float` also takes 1_000, ２, nan and infinity, which other programs do not, or not as
    numbers to learn.
    """
    number = float(text) if _NUMBER.fullmatch(text) else math.inf
    return number if math.isfinite(number) else None


def check(splits: Splits) -> Splits:
    """Raise UserError for data that nothing can be learned from or measured on."""
    parts = {
        "training examples": splits.train,
        **{f"{name} examples": part for name, part in splits.dev.items()},
    }
    for name, part in parts.items():
        if not len(part):
            raise UserError(f"{splits.origin}: there are no {name} of {splits.task.title}: bring some")
    splits.task.check(splits)
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
    kept, _ = divide(examples, most / len(examples), task.strata(examples.labels or []), at_most=most)
    return kept


def divide(
    examples: Examples,
    share: float,
    strata: Sequence[Hashable] | None = None,
    *,
    at_most: int | None = None,
) -> tuple[Examples, Examples]:
    """The `share` of each class whose texts have the lowest hashes, and the rest, both in file order.

    Depends on nothing but the texts: the same for any seed and any order of the file. Equal texts of one
    class go to the same side, unless the border falls between them.

    Args:
        strata: the class of each example; its label when absent.
    """
    strata = (examples.labels or []) if strata is None else strata
    classes: dict[Hashable, list[int]] = defaultdict(list)
    for index, stratum in enumerate(strata):
        classes[stratum].append(index)
    chosen: set[int] = set()
    for members in classes.values():
        members.sort(key=lambda index: (text_hash("\t".join(examples.texts[index])), index))
        chosen.update(members[: max(round(share * len(members)), 1)])
    picked = sorted(chosen)
    if at_most is not None:
        picked = picked[:at_most] if len(classes) > at_most else _trimmed(picked, at_most, strata)
    inside = set(picked)
    return examples.take(picked), examples.take(i for i in range(len(examples)) if i not in inside)


def _trimmed(picked: list[int], at_most: int, strata: Sequence[Hashable]) -> list[int]:
    """Rounding may have taken a few too many: the last ones of classes that have others go."""
    counts = Counter(strata[index] for index in picked)
    kept = list(picked)
    for index in reversed(picked):
        if len(kept) <= at_most:
            break
        if counts[strata[index]] > 1:
            counts[strata[index]] -= 1
            kept.remove(index)
    return kept


def in_order(values: Iterable[str]) -> list[str]:
    """Numbers by size where all of them are numbers, else all of them by their letters."""
    numbers = {value: number_of(value) for value in values}
    if None in numbers.values():
        return sorted(numbers)
    return sorted(numbers, key=lambda value: (numbers[value], value))


def id_of(value: str, ids: dict[str, int]) -> int:
    if value not in ids:
        raise Unusable(f"has the label {shortened(value)}, which is none of {listed(ids)}")
    return ids[value]


def number_in(value: str, column: str) -> float:
    if (number := number_of(value)) is None:
        raise Unusable(f"has {shortened(value)} in {column!r}, which is no number")
    return number


def unlike(name: str, taken: Collection[str]) -> str:
    while name in taken:
        name += "_"
    return name
