"""Records of delimited text: read with the line that each begins on, and written so that they read the same.

With quotes, a record is what pandas and spreadsheets write (RFC 4180): a cell in double quotes may hold
separators, line breaks and doubled quotes. Without them, as in GLUE's files, a record is a line, and a quote
is text.
"""

from __future__ import annotations

import csv
import io
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from nystromformer.data.text_files import Line


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
