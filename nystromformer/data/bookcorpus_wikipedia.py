"""Wikipedia and BookCorpus, the corpus of BERT and of the Nyströmformer paper.

Each comes from a repository of the hub, or from a local folder of Parquet files with a column `text`
(the same files, downloaded elsewhere). Both are read row by row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from nystromformer.data.documents import Document, Source
from nystromformer.errors import UserError
from nystromformer.settings import DataSettings

_TEXT = "text"
_ROWS_AT_ONCE = 256


class _Part(NamedTuple):
    """One of the two data sets."""

    setting: str
    """The setting that names it, for messages."""
    name: str
    config: str | None
    revision: str | None
    to_documents: Callable[[Iterable[Document]], Iterator[Document]]


class BookCorpusWikipedia:
    """Wikipedia's articles, then BookCorpus in pseudo-documents."""

    def __init__(self, settings: DataSettings) -> None:
        self._streaming = settings.streaming
        rows_per_document = settings.bookcorpus_rows_per_document
        self._parts: list[_Part] = []
        if settings.wikipedia:
            self._parts.append(
                _Part(
                    "data.wikipedia",
                    settings.wikipedia,
                    settings.wikipedia_config,
                    settings.wikipedia_revision,
                    iter,  # a row is an article
                )
            )
        if settings.bookcorpus:
            self._parts.append(
                _Part(
                    "data.bookcorpus",
                    settings.bookcorpus,
                    settings.bookcorpus_config,
                    settings.bookcorpus_revision,
                    lambda rows: group_rows(rows, rows_per_document),
                )
            )
        # Only folders are looked at now; the hub is asked when its rows are needed, which is never
        # when the prepared corpus exists.
        self._files = [_parquet_files(part) for part in self._parts]

    @property
    def sources(self) -> list[Source]:
        return [
            _local_source(part, files) if files else Source(part.name, None, f"{part.config}@{part.revision}")
            for part, files in zip(self._parts, self._files, strict=True)
        ]

    def documents(self, source: int) -> Iterator[Document]:
        """Raises UserError when the hub is out of reach or a file is no Parquet with a column `text`."""
        part, files = self._parts[source], self._files[source]
        rows = _local_rows(files) if files else _hub_rows(part, self._streaming)
        return part.to_documents(rows)


def group_rows(rows: Iterable[Document], rows_per_document: int) -> Iterator[Document]:
    """Join consecutive rows, which are sentences without document borders, into pseudo-documents.

    A row equal to the one before it is dropped first: BookCorpus repeats many.
    """
    distinct = (next(same) for _, same in groupby(rows, key=lambda row: row.text))
    while group := list(islice(distinct, rows_per_document)):
        yield Document("\n".join(row.text for row in group), group[0].place)


def _parquet_files(part: _Part) -> list[Path]:
    """The Parquet files of a local folder; none for a repository of the hub."""
    folder = Path(part.name)
    if folder.is_dir():
        if files := sorted(folder.rglob("*.parquet")):
            return files
        raise UserError(f"{part.setting}: the folder {part.name!r} holds no .parquet file: correct the path")
    if folder.exists() or part.name.count("/") != 1 or part.name.startswith((".", "/", "~")):
        raise UserError(
            f"{part.setting}={part.name!r} is neither a folder of Parquet files nor a repository of the hub: "
            "write FOLDER or OWNER/NAME"
        )
    return []


def _local_source(part: _Part, files: list[Path]) -> Source:
    stats = [(path.relative_to(part.name).as_posix(), path.stat()) for path in files]
    listing = "\n".join(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats)
    return Source(
        Path(part.name).name, None, f"{len(files)} files {hashlib.sha256(listing.encode()).hexdigest()[:16]}"
    )


def _local_rows(files: list[Path]) -> Iterator[Document]:
    for path in files:
        try:
            with pq.ParquetFile(path) as parquet:
                if _TEXT not in parquet.schema_arrow.names:
                    raise UserError(
                        f"{path} has no column {_TEXT!r} but {', '.join(parquet.schema_arrow.names)}: "
                        f"rename the column of the documents to {_TEXT!r}"
                    )
                number = 0
                for batch in parquet.iter_batches(_ROWS_AT_ONCE, columns=[_TEXT]):
                    for text in batch.column(0).to_pylist():
                        number += 1
                        yield _row(text, f"{path}:{number}")
        except (pa.ArrowException, OSError) as error:
            first_line = str(error).splitlines()[0]
            raise UserError(
                f"{path} is no complete Parquet file ({first_line}): download it again"
            ) from error


def _hub_rows(part: _Part, streaming: bool) -> Iterator[Document]:
    from datasets import load_dataset  # heavy, and needed for the hub only

    try:
        rows = load_dataset(
            part.name, part.config, revision=part.revision, split="train", streaming=streaming
        )
        for number, row in enumerate(rows.select_columns([_TEXT]), start=1):
            yield _row(row[_TEXT], f"{part.name}:{number}")
    except UserError:
        raise
    except Exception as error:  # datasets, the hub's client and fsspec each raise their own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{part.setting}={part.name!r} (config {part.config}, revision {part.revision}) cannot be read "
            f"from the hub ({reason}): download its Parquet files where there is a network and write "
            f"{part.setting}=FOLDER, or use data=imdb or data=text"
        ) from error


def _row(text: object, place: str) -> Document:
    if not isinstance(text, str):
        raise UserError(
            f"{place}: column {_TEXT!r} holds {type(text).__name__}, not a string: drop or correct the row"
        )
    return Document(text, place)
