"""Documents from tables: local Parquet files, and repositories of the hub.

A row is a document, or `rows_per_document` consecutive rows are one: BookCorpus has single sentences in
its rows and no borders of documents. Both are read row by row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from nystromformer.data.documents import Document, Source, SourceGone
from nystromformer.data.text_files import expand
from nystromformer.errors import UserError

_ROWS_AT_ONCE = 256


class Table(NamedTuple):
    """Where rows are and what a document is in them."""

    setting: str
    """The setting that names it, for messages."""
    name: str
    """A folder of Parquet files, or a repository of the hub."""
    config: str | None = None
    revision: str | None = None
    column: str = "text"
    rows_per_document: int = 1


class ParquetFiles:
    """Parquet files by path, glob or folder, as one source."""

    def __init__(self, table: Table, patterns: Sequence[str]) -> None:
        self._table = table
        self._paths: list[Path] = []
        for pattern in patterns:
            folder = Path(pattern)
            found = parquet_in(folder, table.setting) if folder.is_dir() else expand(
                [pattern], table.setting, (".parquet",), "write .parquet files or a folder of them"
            )  # fmt: skip
            self._paths.extend(path for path in found if path not in self._paths)

    @property
    def sources(self) -> list[Source]:
        return [Source(Path(self._table.name).name, None, tuple(self._paths), format=".parquet")]

    def documents(self, source: int) -> Iterator[Document]:
        """Raises UserError when a file is no Parquet or has no such column of strings."""
        return group_rows(_parquet_rows(self._paths, self._table.column), self._table.rows_per_document)


class HubRepository:
    """A repository of the hub: asked once for the commit that its revision means, which is then read.

    Out of the hub's reach the revision stays as it is written.
    """

    def __init__(self, table: Table, *, streaming: bool) -> None:
        self._table = table
        self._streaming = streaming

    @cached_property
    def commit(self) -> str | None:
        """The hash of the commit, or None where the hub does not tell."""
        return commit_of(self._table.name, self._table.revision)

    @property
    def sources(self) -> list[Source]:
        version = f"{self._table.config}@{self.commit or self._table.revision}"
        return [Source(self._table.name, None, version=version, certain=self.commit is not None)]

    def documents(self, source: int) -> Iterator[Document]:
        """Raises UserError when the hub is out of reach or has no such column."""
        table = self._table._replace(revision=self.commit or self._table.revision)
        return group_rows(_hub_rows(table, self._streaming), self._table.rows_per_document)


def commit_of(repository: str, revision: str | None) -> str | None:
    """The commit that a revision of a data set on the hub is now; None without an answer of the hub."""
    if revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    from huggingface_hub import HfApi  # heavy, and needed for the hub only

    try:
        return HfApi().dataset_info(repository, revision=revision, timeout=20).sha
    except Exception:  # no network, no such repository, no access: who reads it will be told
        return None


def open_table(table: Table, *, streaming: bool) -> ParquetFiles | HubRepository:
    """What `table.name` means: a local folder of Parquet files, else a repository of the hub."""
    folder = Path(table.name)
    if folder.is_dir():
        return ParquetFiles(table, [table.name])
    if folder.exists() or table.name.count("/") != 1 or table.name.startswith((".", "/", "~")):
        raise (UserError if folder.exists() else SourceGone)(
            f"{table.setting}={table.name!r} is neither a folder of Parquet files nor a repository of the "
            "hub: write FOLDER or OWNER/NAME"
        )
    return HubRepository(table, streaming=streaming)


def group_rows(rows: Iterable[Document], rows_per_document: int) -> Iterator[Document]:
    """Join consecutive rows, which are sentences without document borders, into pseudo-documents.

    A row equal to the one before it is dropped first: BookCorpus repeats many. Rows without text are
    documents of their own, so that they are counted.
    """
    if rows_per_document == 1:
        yield from rows
        return
    group: list[Document] = []
    before: str | None = None
    for row in rows:
        if row.fault or not row.text.strip():
            yield row
        elif row.text != before:
            before = row.text
            group.append(row)
        if len(group) == rows_per_document:
            yield _joined(group)
            group = []
    if group:
        yield _joined(group)


def _joined(group: list[Document]) -> Document:
    return Document("\n".join(row.text for row in group), group[0].place)


def parquet_in(folder: Path, setting: str) -> list[Path]:
    """The Parquet files of a folder and those below it."""
    if files := sorted(
        path for path in folder.rglob("*") if path.suffix.lower() == ".parquet" and path.is_file()
    ):
        return files
    raise SourceGone(f"{setting}: the folder {str(folder)!r} holds no .parquet file: correct the path")


def _parquet_rows(files: list[Path], column: str) -> Iterator[Document]:
    for path in files:
        try:
            with pq.ParquetFile(path) as parquet:
                if column not in parquet.schema_arrow.names:
                    raise UserError(
                        f"{path} has no column {column!r} but {', '.join(parquet.schema_arrow.names)}: "
                        f"rename the column of the documents to {column!r}, or name it as the text_field of "
                        "an entry of data.sources"
                    )
                number = 0
                for batch in parquet.iter_batches(_ROWS_AT_ONCE, columns=[column]):
                    for text in batch.column(0).to_pylist():
                        number += 1
                        yield _row(text, column, f"{path}:{number}")
        except (pa.ArrowException, OSError) as error:
            first_line = str(error).splitlines()[0]
            raise UserError(
                f"{path} is no complete Parquet file ({first_line}): download it again"
            ) from error


def _hub_rows(table: Table, streaming: bool) -> Iterator[Document]:
    from datasets import load_dataset  # heavy, and needed for the hub only

    try:
        rows = load_dataset(
            table.name, table.config, revision=table.revision, split="train", streaming=streaming
        )
        for number, row in enumerate(rows.select_columns([table.column]), start=1):
            yield _row(row[table.column], table.column, f"{table.name}:{number}")
    except UserError:
        raise
    except Exception as error:  # datasets, the hub's client and fsspec each raise their own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{table.setting}={table.name!r} (config {table.config}, revision {table.revision}) cannot be "
            f"read from the hub ({reason}): download its Parquet files where there is a network and write "
            f"{table.setting}=FOLDER, or use data=imdb or data=text"
        ) from error


def _row(text: object, column: str, place: str) -> Document:
    if text is None:
        return Document("", place)
    if not isinstance(text, str):
        fault = f"{place}: column {column!r} holds {type(text).__name__}, not a string: correct the row"
        return Document("", place, fault)
    return Document(text, place)
