"""Documents from tables: local Parquet files, and repositories of the hub.

A row is a document, or `rows_per_document` consecutive rows are one: BookCorpus has single sentences in
its rows and no borders of documents. Both are read row by row. `setting` is where the user named them, for
messages.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nystromformer.data.documents import Document, Source, SourceGone
from nystromformer.data.text_files import expand
from nystromformer.errors import UserError
from nystromformer.hub import first_line, look_for
from nystromformer.settings.data import SourceSettings

_ROWS_AT_ONCE = 256


def parquet_files(table: SourceSettings, patterns: Sequence[str], setting: str) -> Source:
    """Parquet files by path, glob or folder, as one source.

    Its documents raise UserError when a file is no Parquet or has no such column of strings.
    """
    paths: list[Path] = []
    for pattern in patterns:
        if Path(pattern).is_dir():
            paths += _parquet_in(Path(pattern), setting)
        else:
            paths += expand([pattern], setting, (".parquet",), "write .parquet files or a folder of them")
    files = tuple(dict.fromkeys(paths))
    documents = partial(_documents, table, partial(_parquet_rows, files, table.text_field))
    return Source(Path(patterns[0]).name, None, documents, files, format=".parquet")


def _documents(table: SourceSettings, rows: Callable[[], Iterator[Document]]) -> Iterator[Document]:
    return group_rows(rows(), table.rows_per_document or 1)


def _hub_repository(table: SourceSettings, name: str, setting: str, streaming: bool) -> Source:
    """A repository of the hub: asked once for the commit that its revision means, which is then read.

    Out of the hub's reach the revision stays as it is written. Its documents raise UserError when the hub
    is out of reach or has no such column.
    """
    commit = commit_of(name, table.revision)
    column, config, revision = table.text_field, table.config, commit or table.revision

    def rows() -> Iterator[Document]:
        look_for(name)
        from datasets import load_dataset  # heavy, and needed for the hub only

        try:
            rows = load_dataset(name, config, revision=revision, split="train", streaming=streaming)
            for number, row in enumerate(rows.select_columns([column]), start=1):
                yield _row(row[column], column, f"{name}:{number}")
        except UserError:
            raise
        except Exception as error:  # datasets, the hub's client and fsspec each raise their own
            raise UserError(
                f"{setting}={name!r} (config {config}, revision {revision}) cannot be read from "
                f"the hub ({first_line(error)}): download its Parquet files where there is a network and "
                f"write {setting}=FOLDER, or use data=imdb or data=text"
            ) from error

    documents = partial(_documents, table, rows)
    return Source(name, None, documents, version=f"{config}@{revision}", certain=commit is not None)


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


def open_repository(table: SourceSettings, setting: str, *, streaming: bool) -> Source:
    """What `table.repository` means: a local folder of Parquet files, else a repository of the hub."""
    name = table.repository or next(iter(table.files), "")
    folder = Path(name)
    if folder.is_dir():
        return parquet_files(table, [name], setting)
    if folder.exists() or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise (UserError if folder.exists() else SourceGone)(
            f"{setting}={name!r} is neither a folder of Parquet files nor a repository of the hub: write "
            "FOLDER or OWNER/NAME"
        )
    return _hub_repository(table, name, setting, streaming)


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
            raise UserError(
                f"{path} is no complete Parquet file ({first_line(error)}): download it again"
            ) from error


def _row(text: object, column: str, place: str) -> Document:
    if text is None:
        return Document("", place)
    if not isinstance(text, str):
        fault = f"{place}: column {column!r} holds {type(text).__name__}, not a string: correct the row"
        return Document("", place, fault)
    return Document(text, place)
