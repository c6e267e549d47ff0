"""Rows of .tsv, .csv and .jsonl files, plain or compressed, each with the place it comes from.

A .tsv file is read without quoting, as GLUE's are written: a lone `"` is text. A .csv file is read as
spreadsheets write it, quoted cells with commas and line breaks in them.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nystromformer.data.lines import expand, kind_of, lines
from nystromformer.errors import UserError

KINDS = (".tsv", ".csv", ".jsonl")


@dataclass(frozen=True)
class Row:
    """One row, by column name, and where it stands."""

    cells: dict[str, str]
    path: Path
    line: int

    @property
    def place(self) -> str:
        return f"{self.path}, line {self.line}"


class Malformed(UserError):
    """A row that cannot be read."""


class TableFile:
    """A file with named columns; making one checks that it is there and has those asked for.

    Args:
        columns: that must be there.
        headless: names of the columns where the file has no header line.
        setting: what the path was given by, for messages.
        skip: leave malformed rows out and count them in `skipped`, rather than raise.
    """

    def __init__(
        self,
        path: Path,
        columns: Sequence[str],
        *,
        headless: Sequence[str] = (),
        setting: str = "file",
        skip: bool = False,
    ) -> None:
        (self.path,) = expand([str(path)], setting, KINDS, "write a .tsv, .csv or .jsonl file")
        self.skipped = 0
        self._skip = skip
        self._headless = list(headless)
        self._wanted: list[str] = []
        self.columns = self._header()
        for column in columns:
            if column not in self.columns:
                there = ", ".join(map(repr, self.columns))
                raise UserError(f"{self.path} has no column {column!r}: name one of {there}")
        self._wanted = list(columns)

    def rows(self) -> Iterator[Row]:
        """Every row; raises Malformed with file and line for one that cannot be read."""
        for row in self._jsonl() if kind_of(self.path) == ".jsonl" else self._table():
            if isinstance(row, Row):
                yield row
            elif self._skip:
                self.skipped += 1
            else:
                raise row

    def reject(self, row: Row, why: str) -> None:
        """What to do with a row whose content will not do: raise, or count it."""
        if not self._skip:
            raise _malformed(row.place, why)
        self.skipped += 1

    def _header(self) -> list[str]:
        if self._headless:
            return self._headless
        if kind_of(self.path) == ".jsonl":
            first = next((row for row in self._jsonl() if isinstance(row, Row)), None)
            if first is None:
                raise UserError(f"{self.path} holds no rows: write one JSON object a line")
            return list(first.cells)
        header = next(self._cells(), (0, []))[1]
        return [name.strip() for name in header]

    def _cells(self) -> Iterator[tuple[int, list[str]]]:
        """Line number and cells, the header included."""
        if kind_of(self.path) == ".tsv":
            for line in lines(self.path):
                if line.text:
                    yield line.number, line.text.split("\t")
            return
        reader = csv.reader((line.text + "\n" for line in lines(self.path)), strict=True)
        try:
            for cells in reader:
                if cells:
                    yield reader.line_num, cells
        except csv.Error as error:
            raise UserError(
                f"{self.path}, line {reader.line_num} is no CSV ({error}): mend the quotes"
            ) from None

    def _table(self) -> Iterator[Row | Malformed]:
        rows = self._cells()
        if not self._headless:
            next(rows, None)
        for number, cells in rows:
            if len(cells) != len(self.columns):
                yield _malformed(
                    f"{self.path}, line {number}",
                    f"{len(cells)} columns, where there should be {len(self.columns)}",
                )
            else:
                yield Row(dict(zip(self.columns, cells, strict=True)), self.path, number)

    def _jsonl(self) -> Iterator[Row | Malformed]:
        for line in lines(self.path):
            if not line.text.strip():
                continue
            place = f"{self.path}, line {line.number}"
            try:
                content = json.loads(line.text)
            except ValueError as error:
                yield _malformed(place, f"no JSON ({error})")
                continue
            if not isinstance(content, dict):
                yield _malformed(place, "no JSON object")
                continue
            missing = [name for name in self._wanted if content.get(name) is None]
            if missing:
                yield _malformed(place, f"no {missing[0]!r}")
                continue
            cells = {name: _as_cell(value) for name, value in content.items() if value is not None}
            yield Row(cells, self.path, line.number)


def _as_cell(value: object) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _malformed(place: str, why: str) -> Malformed:
    return Malformed(f"{place} is malformed ({why}): mend the row, or write data.malformed_rows=skip")
