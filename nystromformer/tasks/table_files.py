"""Rows of .csv, .tsv and .jsonl files, and delimited text that is written so that it reads the same.

Cells may stand in quotes, whatever the file's ending: so write pandas and spreadsheets. GLUE's own files have
no quoting, which the one who names them says: a lone `"` is text there.

With quotes, a record is what RFC 4180 says: a cell in double quotes may hold separators, line breaks and
doubled quotes. Without them a record is a line, and a quote is text.
"""

from __future__ import annotations

import csv
import io
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from nystromformer.data.text_files import Line, kind_of
from nystromformer.errors import UserError
from nystromformer.settings.finetune import SEPARATORS
from nystromformer.tasks.row_files import Asked, Fault, Row, RowFile, Unusable, is_unicode, listed

KINDS = {".csv": "comma", ".tsv": "tab", ".jsonl": None}
"""Endings, and what stands between the columns where nothing else is said."""
PREDICTIONS = ("index", "prediction")
"""The first columns of the files that `evaluate` writes."""
_HINT = "write a .csv, .tsv or .jsonl file"
_LINES_OF_DOUBT = 3


class TableFile(RowFile):
    """A file with named columns; making one checks that it has those asked for, each once.

    Args:
        columns: that every row must have.
        headless: names of the columns where the file has no header line.
    """

    def __init__(self, asked: Asked, columns: Sequence[str], *, headless: Sequence[str] = ()) -> None:
        super().__init__(asked, KINDS, _HINT)
        self._prefix = "data." if asked.is_to_learn else ""
        self._headless = list(headless)
        self._separator = asked.separator or KINDS[kind_of(self.path)] or ""
        self._quotes = asked.quotes is not False
        self._required: list[str] = []
        self.columns = self._header()
        """Names in the header, or of the first JSON line."""
        for column in columns:
            self.require(column)

    def has(self, column: str) -> bool:
        """Whether there is such a column: in the header, or with a value in any JSON line."""
        if not self.is_json:
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
        rows = self._json_rows() if self.is_json else self._delimited_rows()
        return self.usable(rows, lambda row, _: [row])

    def _header(self) -> list[str]:
        if self._headless:
            return self._headless
        if self.is_json:
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
        return records(self.lines(), SEPARATORS[separator], quotes=self._quotes)

    def _delimited_rows(self) -> Iterator[Row | Unusable]:
        rows = self._records(self._separator)
        if not self._headless:
            next(rows, None)
        width = len(self.columns)
        for line, cells, raw in rows:
            place = f"line {line}"
            if isinstance(cells, Exception):
                yield Unusable(self._on_quotes(cells), place)
                continue
            if doubt := self._doubt_about(line, raw):
                if not self.asked.report:
                    raise UserError(f"{self.path}, {doubt}")
                yield Unusable(f"is in doubt: {doubt}", place)
                continue
            while len(cells) > width and self._quotes and not cells[-1].strip():
                cells.pop()  # a separator at the end of the line
            if len(cells) != width:
                what = f"is malformed ({len(cells)} columns, where there should be {width})"
                yield Unusable(what, place)
            elif not is_unicode(cells):
                yield Unusable("is malformed (no UTF-8)", place)
            else:
                yield Row(dict(zip(self.columns, cells, strict=True)), self.path, line)

    def _doubt_about(self, line: int, raw: list[str]) -> str | None:
        """What to say of lines that are one quoted cell, or many rows with a lone quote at both ends.

        Tabs alone tell: a text seldom has one column's worth in each of three lines, and no doubled quote.
        """
        tabs = len(self.columns) - 1
        in_doubt = self.asked.quotes is None and self._separator == "tab"
        if not (in_doubt and tabs and len(raw) >= _LINES_OF_DOUBT):
            return None
        like_rows = all(text.count("\t") == tabs and '""' not in text for text in raw)
        if not like_rows or _is_written_here(self.columns):
            return None
        return (
            f"lines {line} to {line + len(raw) - 1} are one quoted cell, or as many rows: "
            f"write {self._prefix}quotes=false where a quote is text, or {self._prefix}quotes=true"
        )

    def _json_rows(self) -> Iterator[Row | Unusable]:
        for row in self.objects():
            cells = row.cells if isinstance(row, Row) else {}
            missing = [name for name in self._required if cells.get(name) is None]
            twice = [name for name in self._required if name in getattr(cells, "twice", ())]
            if isinstance(row, Row) and (missing or twice):
                wrong = f"no {missing[0]!r}" if missing else f"{twice[0]!r} stands in it twice"
                yield Unusable(f"is malformed ({wrong})", row.place)
            else:
                yield row

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
        for separator in () if self.is_json or self._headless else SEPARATORS:
            names = self._first(separator).cells
            if separator == self._separator or isinstance(names, Exception) or len(names) < 2:
                continue
            if wanted is None or wanted in names:
                return f"{self._prefix}separator={separator}"
        return None


def _is_written_here(columns: Sequence[str]) -> bool:
    return all(name.startswith(ours) for name, ours in zip(columns, PREDICTIONS, strict=False))


# --- delimited text -----------------------------------------------------------------------------------


class Record(NamedTuple):
    line: int
    """That it begins on, counted from 1."""
    cells: list[str] | csv.Error
    """Or what is wrong with its quotes."""
    lines: list[str]
    """As they stand in the file, without their ends."""


_LONGEST_CELL = 2**31 - 1
"""The csv module stops at 131,072 characters by itself: less than a chapter. This is what a C long holds."""
_RETURN = re.compile("\r\n?")


def records(lines: Iterable[Line], separator: str, *, quotes: bool) -> Iterator[Record]:
    """Every record; blank lines are none.

    A record whose quotes go wrong ends with its first line: the lines below are read anew, so that a quote
    which is never closed costs one line and not the rest of the file.
    """
    return _quoted(lines, separator) if quotes else _plain(lines, separator)


def written(rows: Iterable[Sequence[str]], separator: str = "\t") -> str:
    """The rows as text, cells in quotes where they need them."""
    text = io.StringIO()
    plain = csv.writer(text, delimiter=separator, lineterminator="\n")
    # Before Python 3.13 the module does not see that a lone \r would end the line.
    quoted = csv.writer(text, delimiter=separator, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:
        (quoted if any("\r" in cell for cell in row) else plain).writerow(row)
    return text.getvalue()


def _plain(lines: Iterable[Line], separator: str) -> Iterator[Record]:
    for line in lines:
        if line.text:
            yield Record(line.number, line.text.split(separator), [line.text])


def _quoted(lines: Iterable[Line], separator: str) -> Iterator[Record]:
    csv.field_size_limit(_LONGEST_CELL)
    feed = _Feed(lines)
    # Written by hand, a quote often follows the separator and a space.
    reader = csv.reader(feed, delimiter=separator, skipinitialspace=True, strict=True)
    while True:
        feed.taken = []
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Record(feed.taken[0].number, error, [feed.taken[0].text])
            feed.give_back_all_but_the_first()
        else:
            if cells:
                yield Record(feed.taken[0].number, cells, [line.text for line in feed.taken])


class _Feed:
    """Lines for a csv.reader, those of the current record remembered."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self.taken: list[Line] = []
        self._ahead: deque[Line] = deque()
        self._lines = _without_returns(lines)

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        line = self._ahead.popleft() if self._ahead else next(self._lines)
        self.taken.append(line)
        return line.text + "\n"

    def give_back_all_but_the_first(self) -> None:
        self._ahead.extendleft(reversed(self.taken[1:]))


def _without_returns(lines: Iterable[Line]) -> Iterator[Line]:
    """Lines that end at a lone \\r too, as on old Macs, and without NULs, at which Python 3.10 stops."""
    number = 0
    for line in lines:
        for text in _RETURN.split(line.text.replace("\0", "")):
            number += 1
            yield Line(number, text)
