"""Rows of .csv, .tsv and .jsonl files, plain or compressed, each with the place it comes from.

Cells may stand in quotes, whatever the file's ending: so write pandas and spreadsheets. GLUE's own files have
no quoting, which the one who names them says: a lone `"` is text there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nystromformer.data.documents import clean
from nystromformer.data.text_files import Line, expand, kind_of, lines
from nystromformer.errors import UserError
from nystromformer.settings.finetune import SEPARATORS
from nystromformer.tasks.delimited import Record, records

KINDS = {".csv": "comma", ".tsv": "tab", ".jsonl": None}
"""Endings, and what stands between the columns where nothing else is said."""
PREDICTIONS = ("index", "prediction")
"""The first columns of the files that `evaluate` writes."""
_HINT = "write a .csv, .tsv or .jsonl file"
_LINES_OF_DOUBT = 3
_MOST_NAMED = 10
_LONGEST_NAME = 60


class Malformed(UserError):
    """A row that cannot be used."""


class Unusable(Exception):
    """What is wrong with a row, as the predicate of a sentence: `has no label in 'kind'`."""


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


class Faults:
    """What becomes of the rows of a file that cannot be used: `stop`, `skip` or `report`.

    Args:
        setting: what the file's path was given by, for messages.
        skip: leave them out, and list them in `skipped`.
        report: hand them on in their place among the others. Without either the first is raised.
    """

    def __init__(self, path: Path, setting: str, *, skip: bool, report: bool) -> None:
        self._path = path
        self._can_skip = setting.startswith("data.")
        self._skip = skip
        self.reports = report
        self.skipped: list[str] = []
        """Place and reason of each."""

    @property
    def errors(self) -> str:
        """How bytes that are no UTF-8 are decoded: rows that hold such can be used or not like others."""
        return "surrogateescape" if self._skip or self.reports else "strict"

    def reject(self, place: str, what: str, advice: str = "mend the row") -> list[Fault]:
        """The fault, where it is handed on; raises Malformed where that is to be done."""
        fault = Fault(self._path, place, what)
        if self.reports:
            return [fault]
        if self._skip:
            self.skipped.append(str(fault))
            return []
        advice = f" {advice}" if what.endswith(" or") else f": {advice}"
        raise Malformed(f"{fault}{advice}{', or write data.malformed_rows=skip' if self._can_skip else ''}")


@dataclass(frozen=True)
class Row:
    """One row, by column name, and where it stands."""

    cells: dict[str, Any]
    """Text; in JSON lines any value, and a name may be missing."""
    path: Path
    line: int

    def text(self, column: str) -> str:
        """The text in a column, cleaned; empty where there is none. Raises Unusable for what is no text."""
        value = self.cells.get(column)
        if isinstance(value, bool | list | dict):
            raise Unusable(f"is malformed ({column!r} is {_named(value)}, where a text should be)")
        return _scalar(value)

    def label(self, column: str) -> str:
        """The label in a column as a text, empty where there is none; raises Unusable for several in one."""
        value = self.cells.get(column)
        if isinstance(value, list) and len(value) == 1:
            (value,) = value
        if isinstance(value, list | dict):
            raise Unusable(f"is malformed ({column!r} is {_named(value)}, where one label should be)")
        return _scalar(value)


class TableFile:
    """A file with named columns; making one checks that it is there and has those asked for, each once.

    Args:
        columns: that every row must have.
        headless: names of the columns where the file has no header line.
        separator: what stands between the columns, a name of SEPARATORS; None goes by the ending.
        quotes: whether a cell may stand in double quotes; None is true, but for a cell that looks like rows.
        setting: what the path was given by, for messages.
        skip, report: see Faults.
    """

    def __init__(
        self,
        path: Path,
        columns: Sequence[str],
        *,
        headless: Sequence[str] = (),
        separator: str | None = None,
        quotes: bool | None = None,
        setting: str = "file",
        skip: bool = False,
        report: bool = False,
    ) -> None:
        self.path = _the_file(path, setting)
        self.setting = setting
        self._faults = Faults(self.path, setting, skip=skip, report=report)
        self.skipped = self._faults.skipped
        self._prefix = "data." if setting.startswith("data.") else ""
        self._is_strict = self._faults.errors == "strict"
        self._headless = list(headless)
        self._is_json = kind_of(self.path) == ".jsonl"
        self._separator = separator or KINDS[kind_of(self.path)] or ""
        self._quotes = quotes is not False
        self._doubt = quotes is None
        self._required: list[str] = []
        self.columns = self._header()
        """Names in the header, or of the first JSON line."""
        for column in columns:
            self.require(column)

    def has(self, column: str) -> bool:
        """Whether there is such a column: in the header, or with a value in any JSON line."""
        if not self._is_json:
            return column in self.columns
        return any(isinstance(row, Row) and row.cells.get(column) is not None for row in self._json_rows())

    def require(self, column: str) -> None:
        """From now on every row must have this column; raises UserError for none, or two of the name."""
        if column in self._required:
            raise UserError(
                f"{self.path}: column {column!r} is named for two things: text, second text and label are "
                "three columns"
            )
        if not self.has(column):
            raise UserError(f"{self.path} has no column {column!r}{self._advice_on_columns(column)}")
        places = [number for number, name in enumerate(self.columns, start=1) if name == column]
        if len(places) > 1:
            several = f"{', '.join(map(str, places[:-1]))} and {places[-1]}"
            raise UserError(
                f"{self.path}: columns {several} of its header are called {column!r}: rename all but one"
            )
        self._required.append(column)

    def rows(self) -> Iterator[Row]:
        """Every row that can be read; raises Malformed with file and line for another."""
        return (row for row in self.rows_and_faults() if isinstance(row, Row))

    def rows_and_faults(self) -> Iterator[Row | Fault]:
        """The same with the rows that are reported."""
        for row in self._json_rows() if self._is_json else self._delimited_rows():
            if isinstance(row, Row):
                yield row
            else:
                line, what = row
                yield from self._faults.reject(f"line {line}", what)

    def reject(self, row: Row, what: str) -> list[Fault]:
        """What to do with a row that `what` says something against, see Faults."""
        return self._faults.reject(f"line {row.line}", what)

    def _lines(self) -> Iterator[Line]:
        return lines(self.path, errors=self._faults.errors)

    def _header(self) -> list[str]:
        if self._headless:
            return self._headless
        if self._is_json:
            first = next((row for row in self._json_rows() if isinstance(row, Row)), None)
            if first is None:
                raise UserError(f"{self.path} holds no rows: write one JSON object a line")
            return list(first.cells)
        line, cells, _ = self._first(self._separator)
        if isinstance(cells, Exception):
            likely = self._more_likely(None)
            raise UserError(
                f"{self.path}, line {line} {self._on_quotes(cells)}: mend the header"
                + (f", or write {likely} if that separates the columns" if likely else "")
            )
        if not any(cells):
            raise UserError(f"{self.path} has no header: name its columns in the first line")
        return cells

    def _first(self, separator: str) -> Record:
        """The first record, cut at `separator`."""
        record = next(self._records(separator), Record(0, [], []))
        if isinstance(record.cells, Exception):
            return record
        return record._replace(cells=[cell.strip() for cell in record.cells])

    def _records(self, separator: str) -> Iterator[Record]:
        return records(self._lines(), SEPARATORS[separator], quotes=self._quotes)

    def _delimited_rows(self) -> Iterator[Row | tuple[int, str]]:
        rows = self._records(self._separator)
        if not self._headless:
            next(rows, None)
        width = len(self.columns)
        for line, cells, raw in rows:
            if isinstance(cells, Exception):
                yield line, self._on_quotes(cells)
                continue
            if doubt := self._doubt_about(line, raw):
                if not self._faults.reports:
                    raise UserError(f"{self.path}, {doubt}")
                yield line, f"is in doubt: {doubt}"
                continue
            while len(cells) > width and self._quotes and not cells[-1].strip():
                cells.pop()  # a separator at the end of the line
            if len(cells) != width:
                yield line, f"is malformed ({len(cells)} columns, where there should be {width})"
            elif not self._is_strict and not is_unicode(cells):
                yield line, "is malformed (no UTF-8)"
            else:
                yield Row(dict(zip(self.columns, cells, strict=True)), self.path, line)

    def _doubt_about(self, line: int, raw: list[str]) -> str | None:
        """What to say of lines that are one quoted cell, or many rows with a lone quote at both ends.

        Tabs alone tell: a text seldom has one column's worth in each of three lines, and no doubled quote.
        """
        tabs = len(self.columns) - 1
        if not (self._doubt and self._separator == "tab" and tabs and len(raw) >= _LINES_OF_DOUBT):
            return None
        like_rows = all(text.count("\t") == tabs and '""' not in text for text in raw)
        if not like_rows or _is_written_here(self.columns):
            return None
        return (
            f"lines {line} to {line + len(raw) - 1} are one quoted cell, or as many rows: "
            f"write {self._prefix}quotes=false where a quote is text, or {self._prefix}quotes=true"
        )

    def _json_rows(self) -> Iterator[Row | tuple[int, str]]:
        for line in self._lines():
            if not line.text.strip():
                continue
            try:
                content = _parsed(line.text)
            except (ValueError, RecursionError) as error:
                yield line.number, f"is malformed (no JSON: {error})"
                continue
            if not isinstance(content, _Object):
                yield line.number, "is malformed (no JSON object)"
            elif missing := [name for name in self._required if content.get(name) is None]:
                yield line.number, f"is malformed (no {missing[0]!r})"
            elif twice := [name for name in self._required if name in content.twice]:
                yield line.number, f"is malformed ({twice[0]!r} stands in it twice)"
            elif not self._is_strict and not is_unicode([line.text]):
                yield line.number, "is malformed (no UTF-8)"
            else:
                yield Row(content, self.path, line.number)

    def _on_quotes(self, error: Exception) -> str:
        return (
            f"is malformed (a cell's quotes go wrong: {error}; double the quotes within a cell, or write "
            f"{self._prefix}quotes=false where they are text)"
        )

    def _advice_on_columns(self, wanted: str) -> str:
        """What to write where a column is missing: the separator that finds it, or one of the names."""
        if certain := self._more_likely(wanted):
            return f": another separator stands between its columns, write {certain}"
        likely = self._more_likely(None) if len(self.columns) == 1 else None
        return f": name one of {listed(self.columns)}" + (
            f", or write {likely} if that separates the columns" if likely else ""
        )

    def _more_likely(self, wanted: str | None) -> str | None:
        """The setting of a separator that cuts the header into several names, `wanted` among them."""
        for separator in () if self._is_json or self._headless else SEPARATORS:
            names = self._first(separator).cells
            if separator == self._separator or isinstance(names, Exception) or len(names) < 2:
                continue
            if wanted is None or wanted in names:
                return f"{self._prefix}separator={separator}"
        return None


def listed(names: Iterable[str]) -> str:
    """The names in quotes, long ones cut, many counted: one line of a message."""
    names = list(names)
    shown = ", ".join(shortened(name) for name in names[:_MOST_NAMED])
    return shown + (f" and {len(names) - _MOST_NAMED:,} more" if len(names) > _MOST_NAMED else "")


def shortened(text: str) -> str:
    """A text in quotes, of which the beginning tells enough."""
    return repr(text if len(text) <= _LONGEST_NAME else text[:_LONGEST_NAME] + "…")


def _the_file(path: Path, setting: str) -> Path:
    if path.is_dir():
        raise UserError(f"{setting}: {str(path)!r} is a folder: {_HINT}")
    found = expand([str(path)], setting, KINDS, _HINT)
    if len(found) != 1:
        raise UserError(
            f"{setting}: {str(path)!r} matches {len(found)} files: name one, or join them into one"
        )
    return found[0]


def _is_written_here(columns: Sequence[str]) -> bool:
    return all(name.startswith(ours) for name, ours in zip(columns, PREDICTIONS, strict=False))


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
