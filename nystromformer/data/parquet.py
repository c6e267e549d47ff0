"""Documents from tables: local Parquet files, and repositories of the hub.

A row is a document, or `rows_per_document` consecutive rows are one: BookCorpus has single sentences in
its rows and no borders of documents. Both are read row by row. `setting` is where the user named them, for
messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nystromformer.data.documents import Document, Source, SourceGone
from nystromformer.data.text_files import expand
from nystromformer.errors import UserError
from nystromformer.hub import first_line, look_for
from nystromformer.settings.data import SourceSettings

_ROWS_AT_ONCE = 256


class ParquetFiles:
    """Parquet files by path, glob or folder, as one source."""

    def __init__(self, table: SourceSettings, patterns: Sequence[str], setting: str) -> None:
        self._table = table
        self._name = Path(patterns[0]).name
        paths: list[Path] = []
        for pattern in patterns:
            if Path(pattern).is_dir():
                paths += _parquet_in(Path(pattern), setting)
            else:
                paths += expand([pattern], setting, (".parquet",), "write .parquet files or a folder of them")
        self._paths = tuple(dict.fromkeys(paths))

    @property
    def sources(self) -> list[Source]:
        return [Source(self._name, None, self._paths, format=".parquet")]

    def documents(self, source: int) -> Iterator[Document]:
        """Raises UserError when a file is no Parquet or has no such column of strings."""
        rows = _parquet_rows(self._paths, self._table.text_field)
        return group_rows(rows, self._table.rows_per_document or 1)


class HubRepository:
    """A repository of the hub: asked once for the commit that its revision means, which is then read.

    Out of the hub's reach the revision stays as it is written.
    """

    def __init__(self, table: SourceSettings, name: str, setting: str, *, streaming: bool) -> None:
        self._table = table
        self._name = name
        self._setting = setting
        self._streaming = streaming

    @cached_property
    def commit(self) -> str | None:
        """The hash of the commit, or None where the hub does not tell."""
        return commit_of(self._name, self._table.revision)

    @property
    def sources(self) -> list[Source]:
        version = f"{self._table.config}@{self.commit or self._table.revision}"
        return [Source(self._name, None, version=version, certain=self.commit is not None)]

    def documents(self, source: int) -> Iterator[Document]:
        """Raises UserError when the hub is out of reach or has no such column."""
        return group_rows(self._rows(), self._table.rows_per_document or 1)

    def _rows(self) -> Iterator[Document]:
        look_for(self._name)
        from datasets import load_dataset  # heavy, and needed for the hub only

        column, config = self._table.text_field, self._table.config
        revision = self.commit or self._table.revision
        try:
            rows = load_dataset(
                self._name, config, revision=revision, split="train", streaming=self._streaming
            )
            for number, row in enumerate(rows.select_columns([column]), start=1):
                yield _row(row[column], column, f"{self._name}:{number}")
        except UserError:
            raise
        except Exception as error:  # datasets, the hub's client and fsspec each raise their own
            raise UserError(
                f"{self._setting}={self._name!r} (config {config}, revision {revision}) cannot be read from "
                f"the hub ({first_line(error)}): download its Parquet files where there is a network and "
                f"write {self._setting}=FOLDER, or use data=imdb or data=text"
            ) from error


def commit_of(repository: str, revision: str | None) -> str | None:
    """The commit that a revision of a data set on the hub is now; None without an answer of the hub."""
    if revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    look_for(repository)
    from huggingface_hub import HfApi  # heavy, and needed for the hub only

    try:
        return HfApi().dataset_info(repository, revision=revision, timeout=20).sha
    except Exception:  # no network, no such repository, no access: who reads it will be told
        return None


def open_repository(table: SourceSettings, setting: str, *, streaming: bool) -> ParquetFiles | HubRepository:
    """What `table.repository` means: a local folder of Parquet files, else a repository of the hub."""
    name = table.repository or next(iter(table.files), "")
    folder = Path(name)
    if folder.is_dir():
        return ParquetFiles(table, [name], setting)
    if folder.exists() or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise (UserError if folder.exists() else SourceGone)(
            f"{setting}={name!r} is neither a folder of Parquet files nor a repository of the hub: write "
            "FOLDER or OWNER/NAME"
        )
    return HubRepository(table, name, setting, streaming=streaming)


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

    def joined() -> Document:
        return Document("\n".join(row.text for row in group), group[0].place)

    for row in rows:
        if row.fault or not row.text.strip():
            yield row
        elif row.text != before:
            before = row.text
            group.append(row)
        if len(group) == rows_per_document:
            yield joined()
            group = []
    if group:
        yield joined()


def _parquet_in(folder: Path, setting: str) -> list[Path]:
    """The Parquet files of a folder and those below it."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() == ".parquet" and path.is_file())
    if files:
        return files
    raise SourceGone(f"{setting}: the folder {str(folder)!r} holds no .parquet file: correct the path")


def _parquet_rows(files: Sequence[Path], column: str) -> Iterator[Document]:
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


def _row(text: object, column: str, place: str) -> Document:
    if text is None:
        return Document("", place)
    if not isinstance(text, str):
        fault = f"{place}: column {column!r} holds {type(text).__name__}, not a string: correct the row"
        return Document("", place, fault)
    return Document(text, place)
