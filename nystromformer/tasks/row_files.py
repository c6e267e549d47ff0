"""Rows of files, plain or compressed, each with its place; and what becomes of those that are of no use."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from nystromformer.data.documents import clean
from nystromformer.data.text_files import Line, expand, kind_of, lines
from nystromformer.errors import UserError
from nystromformer.settings.finetune import EvaluateSettings, TaskDataSettings

_MOST_NAMED = 10
_LONGEST_NAME = 60


class Malformed(UserError):
    """A row that cannot be used."""


class Unusable(Exception):
    """What is wrong with a row, as the predicate of a sentence: `has no label in 'kind'`."""

    def __init__(self, what: str, place: str = "") -> None:
        super().__init__(what)
        self.place = place
        """`line 4`, where that is not the row's own."""


@dataclass(frozen=True)
class Fault:
    """A row that cannot be used."""

    path: Path
    place: str
    """`line 4`."""
    what: str
    """A predicate: `has no label in 'kind'`."""

    def __str__(self) -> str:
        return f"{self.path}, {self.place} {self.what}"


@dataclass(frozen=True)
class Row:
    """One row, by column name, and where it stands."""

    cells: dict[str, Any]
    """Text; in JSON lines any value, and a name may be missing."""
    path: Path
    line: int
    within: str = ""
    """Where it stands, if its line does not say it."""

    @property
    def place(self) -> str:
        return self.within or f"line {self.line}"

    def name(self, column: str | None, number: int) -> str:
        """What the row is called by a column, or by its number where that has nothing to say."""
        name = self.cells.get(column) if column else None
        return str(number) if name in (None, "") else str(name)

    def text(self, column: str) -> str:
        """The text in a column, cleaned; empty where there is none. Raises Unusable for what is no text."""
        value = self.cells.get(column)
        if isinstance(value, bool | list | dict):
            raise Unusable(f"is malformed ({column!r} is {_named(value)}, where a text should be)")
        return _scalar(value)

    def first(self, columns: Iterable[str]) -> str:
        """The text in the first of the columns that has one; empty where none has."""
        return next((text for column in columns if (text := self.text(column))), "")

    def label(self, column: str) -> str:
        """The label in a column as a text, empty where there is none; raises Unusable for several in one."""
        value = self.cells.get(column)
        if isinstance(value, list) and len(value) == 1:
            (value,) = value
        if isinstance(value, list | dict):
            raise Unusable(f"is malformed ({column!r} is {_named(value)}, where one label should be)")
        return _scalar(value)


@dataclass(frozen=True)
class Asked:
    """A file that a setting names, and how its rows are read."""

    path: Path
    setting: str = "file"
    """What the path was given by, for messages."""
    separator: str | None = None
    """What stands between the columns of a table, a name of SEPARATORS; None goes by the ending."""
    quotes: bool | None = None
    """Whether a cell may stand in double quotes; None is true, but for a cell that looks like rows."""
    skip: bool = False
    """Leave rows out that cannot be used, and list them in `skipped`."""
    report: bool = False
    """Hand them on in their place among the others. Without either the first is raised."""

    @property
    def is_to_learn(self) -> bool:
        """Whether it is a setting of data.* that names it."""
        return self.setting.startswith("data.")


def to_predict(settings: EvaluateSettings) -> Asked:
    """The file to predict or evaluate."""
    path, report = Path(str(settings.file)).expanduser(), settings.reported
    return Asked(path, separator=settings.separator, quotes=settings.quotes, report=report)


def to_learn(data: TaskDataSettings, name: str) -> Asked:
    """The file of data.train, data.dev or data.test."""
    path, skip = Path(getattr(data, name)).expanduser(), data.malformed_rows == "skip"
    return Asked(path, f"data.{name}", data.separator, data.quotes, skip=skip)


class Placed(Protocol):
    """What has been read of a file."""

    @property
    def place(self) -> str:
        """`line 4`."""


R = TypeVar("R", bound=Placed)
X = TypeVar("X")


class RowFile:
    """A file of rows, of which some may be of no use; making one checks that it is there.

    Args:
        endings: that it may have below a compression's; None for any.
        hint: what can be written instead of a file that is of no use.
    """

    advice: ClassVar[str] = "mend the row"

    def __init__(self, asked: Asked, endings: Collection[str] | None, hint: str) -> None:
        path, setting = asked.path, asked.setting
        if path.is_dir():
            raise UserError(f"{setting}: {str(path)!r} is a folder: {hint}")
        found = expand([str(path)], setting, endings, hint)
        if len(found) != 1:
            raise UserError(
                f"{setting}: {str(path)!r} matches {len(found)} files: name one, or join them into one"
            )
        (self.path,) = found
        self.asked = asked
        self.is_json = kind_of(self.path) == ".jsonl"
        self.skipped: list[str] = []
        """Place and reason of each row that was left out."""

    def lines(self) -> Iterator[Line]:
        """Bytes that are no UTF-8 make a row that cannot be used, where such do not stop everything."""
        goes_on = self.asked.skip or self.asked.report
        return lines(self.path, errors="surrogateescape" if goes_on else "strict")

    def reject(self, row: Placed, what: str) -> list[Fault]:
        """The fault, where it is handed on; raises Malformed where the first one ends everything."""
        fault = Fault(self.path, row.place, what)
        if self.asked.report:
            return [fault]
        if self.asked.skip:
            self.skipped.append(str(fault))
            return []
        advice = f" {self.advice}" if what.endswith(" or") else f": {self.advice}"
        skipping = ", or write data.malformed_rows=skip" if self.asked.is_to_learn else ""
        raise Malformed(f"{fault}{advice}{skipping}")

    def usable(
        self, rows: Iterable[R | Unusable | Fault], found: Callable[[R, int], Iterable[X]]
    ) -> Iterator[X | Fault]:
        """What each row holds, and the faults in their place.

        Args:
            found: from a row and the number, counted from 0, of what is found next; it raises Unusable for
                a row that cannot be used.
        """
        number = 0
        for row in rows:
            parts: list[X] | list[Fault]
            try:
                if isinstance(row, Unusable):
                    raise row
                parts = [row] if isinstance(row, Fault) else list(found(row, number))
            except Unusable as error:
                parts = self.reject(error if error.place else row, str(error))
            yield from parts
            number += len(parts)

    def objects(self) -> Iterator[Row | Unusable]:
        """The objects of JSON lines."""
        for line in self.lines():
            if not line.text.strip():
                continue
            place = f"line {line.number}"
            try:
                content = _parsed(line.text)
            except (ValueError, RecursionError) as error:
                yield Unusable(f"is malformed (no JSON: {error})", place)
                continue
            if not isinstance(content, dict):
                yield Unusable("is malformed (no JSON object)", place)
            elif not is_unicode([line.text]):
                yield Unusable("is malformed (no UTF-8)", place)
            else:
                yield Row(content, self.path, line.number)


def listed(names: Iterable[str]) -> str:
    """The names in quotes, long ones cut, many counted: one line of a message."""
    names = list(names)
    shown = ", ".join(shortened(name) for name in names[:_MOST_NAMED])
    return shown + (f" and {len(names) - _MOST_NAMED:,} more" if len(names) > _MOST_NAMED else "")


def shortened(text: str) -> str:
    """A text in quotes, of which the beginning tells enough."""
    return repr(text if len(text) <= _LONGEST_NAME else text[:_LONGEST_NAME] + "…")


def is_unicode(texts: Iterable[str]) -> bool:
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return False
    return True


# --- the values of JSON -------------------------------------------------------------------------------


def _named(value: bool | list | dict) -> str:
    if isinstance(value, bool):
        return json.dumps(value)
    return "a list" if isinstance(value, list) else "an object"


class _Object(dict[str, Any]):
    """A JSON object that remembers which names it was given twice."""

    twice: frozenset[str] = frozenset()


def _parsed(text: str) -> Any:
    """The value of a JSON text; raises ValueError for NaN and Infinity, which are none of JSON's."""
    return json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    content = _Object(pairs)
    if len(content) != len(pairs):
        names = [name for name, _ in pairs]
        content.twice = frozenset(name for name in names if names.count(name) > 1)
    return content


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} stands for no number")


def _scalar(value: Any) -> str:
    """A JSON scalar as a text: 1.0 and 1 are one number there, and so one text."""
    if isinstance(value, str):
        return clean(value)
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value)
