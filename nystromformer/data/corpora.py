"""A corpus as configuration: sources of several kinds, each with a weight and a limit.

`data=mixture` lists them in `data.sources`; the other values of `data.corpus` are short forms of such a
list. Whatever the form, below this module a corpus is a list of parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

from nystromformer.data.documents import Document, Reader, Source
from nystromformer.errors import UserError
from nystromformer.settings import DataSettings
from nystromformer.settings.data import CORPORA, SourceSettings


@dataclass(frozen=True)
class Part:
    """One source of the configuration, opened."""

    settings: SourceSettings
    reader: Reader
    skip_malformed: bool = False
    """Pass documents with a fault on, to be counted, rather than raise."""

    def documents(self) -> Iterator[Document]:
        """All documents of its inputs in order, up to the limits; an input beyond them is not opened."""
        limits = self.settings
        documents = (d for i in range(len(self.reader.sources)) for d in self._documents_of(i))
        left = None if limits.max_megabytes is None else limits.max_megabytes * 1e6
        for document in islice(documents, limits.max_documents):
            if left is not None:
                left -= len(document.text.encode("utf-8", "replace"))
            yield document
            if left is not None and left <= 0:
                return

    def _documents_of(self, source: int) -> Iterator[Document]:
        first_fault, sound = "", False
        for document in self.reader.documents(source):
            if not document.fault:
                sound = True
            elif not self.skip_malformed:
                raise UserError(f"{document.fault}, or data.malformed_rows=skip to leave such rows out")
            first_fault = first_fault or document.fault
            yield document
        if first_fault and not sound:  # a wrong setting, not a few wrong rows
            raise UserError(f"{first_fault}; every row of its file is like that")


@dataclass(frozen=True)
class Corpus:
    """The parts in order, of which the first `max_documents` documents count."""

    parts: list[Part]
    max_documents: int | None = None

    @property
    def sources(self) -> list[Source]:
        return [source for part in self.parts for source in part.reader.sources]

    @property
    def total_bytes(self) -> int | None:
        """What there is to read; None where that is not known before all of it is read."""
        sizes = [source.size for source in self.sources]
        limited = self.max_documents is not None or any(
            part.settings.max_documents or part.settings.max_megabytes for part in self.parts
        )
        return None if limited or None in sizes else sum(size or 0 for size in sizes)

    def documents(self) -> Iterator[tuple[int, Document]]:
        """Every document with the number of its part."""
        numbered = ((number, d) for number, part in enumerate(self.parts) for d in part.documents())
        return islice(numbered, self.max_documents)


def open_corpus(settings: DataSettings) -> Corpus:
    """The corpus that the settings describe, its inputs checked to exist but not yet read.

    Raises UserError for an unknown kind, a missing package or a missing file.
    """
    if settings.corpus not in CORPORA:
        raise UserError(f"data.corpus={settings.corpus!r} is unknown: write one of {', '.join(CORPORA)}")
    parts = [
        Part(source, _open(source, setting, settings.streaming), settings.malformed_rows == "skip")
        for setting, source in _described_sources(settings)
    ]
    return Corpus(parts, settings.max_documents)


def read_documents(corpus: Corpus) -> Iterator[Document]:
    """All documents of all parts in order, without those that have a fault."""
    return (document for _, document in corpus.documents() if not document.fault)


def _described_sources(data: DataSettings) -> Iterator[tuple[str, SourceSettings]]:
    """The short forms as sources, each with the setting that its user wrote, for messages."""
    if data.corpus == "imdb":
        yield "data.corpus=imdb", SourceSettings("imdb")
    elif data.corpus == "text":
        yield "data.files", SourceSettings("text", data.files, text_field=data.text_field)
    elif data.corpus == "bookcorpus_wikipedia":
        if data.wikipedia:
            yield "data.wikipedia", _wikipedia(SourceSettings("wikipedia"), data)
        if data.bookcorpus:
            yield "data.bookcorpus", _bookcorpus(SourceSettings("bookcorpus"), data)
    else:
        for number, source in enumerate(data.sources):
            place = f"data.sources[{number}]"
            if source.kind == "wikipedia":
                yield f"{place}.repository", _wikipedia(source, data)
            elif source.kind == "bookcorpus":
                yield f"{place}.repository", _bookcorpus(source, data)
            else:
                yield f"{place}.{'repository' if source.kind == 'hub' else 'files'}", source


def _wikipedia(source: SourceSettings, data: DataSettings) -> SourceSettings:
    if source.repository is not None:
        return source
    return replace(
        source,
        repository=data.wikipedia,
        config=source.config or data.wikipedia_config,
        revision=source.revision or data.wikipedia_revision,
    )


def _bookcorpus(source: SourceSettings, data: DataSettings) -> SourceSettings:
    rows = source.rows_per_document or data.bookcorpus_rows_per_document
    if source.repository is not None:
        return replace(source, rows_per_document=rows)
    return replace(
        source,
        repository=data.bookcorpus,
        config=source.config or data.bookcorpus_config,
        revision=source.revision or data.bookcorpus_revision,
        rows_per_document=rows,
    )


def _open(source: SourceSettings, setting: str, streaming: bool) -> Reader:
    # Imported on use: only the hub needs the heavy `datasets`.
    if source.kind == "imdb":
        from nystromformer.data.imdb import Imdb

        return Imdb()
    if source.kind in ("text", "jsonl"):
        from nystromformer.data.text_files import TextFiles

        return TextFiles(source.files, source.text_field, setting=setting, json_lines=source.kind == "jsonl")
    if source.kind == "wikiextractor":
        from nystromformer.data.wikiextractor import WikiExtractorFiles

        return WikiExtractorFiles(source.files, source.text_field, setting=setting)
    from nystromformer.data.tables import ParquetFiles, Table, open_table

    name = source.repository or (source.files[0] if source.files else "")
    table = Table(
        setting, name, source.config, source.revision, source.text_field, source.rows_per_document or 1
    )
    if source.kind == "parquet":
        return ParquetFiles(table, source.files)
    return open_table(table, streaming=streaming)
