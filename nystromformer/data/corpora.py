"""A corpus as configuration: sources of several kinds, each with a weight and a limit.

`data=mixture` lists them in `data.sources`; the other values of `data.corpus` are short forms of such a
list. Whatever the form, below this module a corpus is a list of parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

from nystromformer.data.documents import Document, Source
from nystromformer.errors import UserError
from nystromformer.settings import DataSettings
from nystromformer.settings.data import CORPORA, SourceSettings


@dataclass(frozen=True)
class Part:
    """One source of the configuration, opened."""

    settings: SourceSettings
    sources: list[Source]
    skip_malformed: bool = False
    """Pass documents with a fault on, to be counted, rather than raise."""

    def documents(self) -> Iterator[Document]:
        """All documents of its inputs in order, up to the limits; an input beyond them is not opened."""
        limits = self.settings
        documents = (d for source in self.sources for d in self._documents_of(source))
        left = None if limits.max_megabytes is None else limits.max_megabytes * 1e6
        for document in islice(documents, limits.max_documents):
            if left is not None:
                left -= len(document.text.encode("utf-8", "replace"))
            yield document
            if left is not None and left <= 0:
                return

    def _documents_of(self, source: Source) -> Iterator[Document]:
        first_fault, sound = "", False
        for document in source.documents():
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
        return [source for part in self.parts for source in part.sources]

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
        for kind in ("wikipedia", "bookcorpus"):
            if getattr(data, kind):
                yield f"data.{kind}", _with_defaults(SourceSettings(kind), data)
    else:
        for number, source in enumerate(data.sources):
            named = "repository" if source.kind in ("hub", "wikipedia", "bookcorpus") else "files"
            yield f"data.sources[{number}].{named}", _with_defaults(source, data)


def _with_defaults(source: SourceSettings, data: DataSettings) -> SourceSettings:
    """Wikipedia and BookCorpus with what `data` says of them where they say nothing themselves."""
    if source.kind == "bookcorpus":
        rows = source.rows_per_document or data.bookcorpus_rows_per_document
        source = replace(source, rows_per_document=rows)
    if source.kind not in ("wikipedia", "bookcorpus") or source.repository is not None:
        return source
    return replace(
        source,
        repository=getattr(data, source.kind),
        config=source.config or getattr(data, f"{source.kind}_config"),
        revision=source.revision or getattr(data, f"{source.kind}_revision"),
    )


def _open(source: SourceSettings, setting: str, streaming: bool) -> list[Source]:
    # Imported on use: every worker imports this module, and only tables need the heavy `pyarrow.parquet`.
    if source.kind in ("text", "jsonl", "wikiextractor", "imdb"):
        from nystromformer.data.text_files import imdb, text_files, wikiextractor_files

        if source.kind == "imdb":
            return [imdb()]
        if source.kind == "wikiextractor":
            return wikiextractor_files(source.files, source.text_field, setting=setting)
        json_lines = source.kind == "jsonl"
        return text_files(source.files, source.text_field, setting=setting, json_lines=json_lines)
    from nystromformer.data.parquet import open_repository, parquet_files

    if source.kind == "parquet":
        return [parquet_files(source, source.files, setting)]
    return [open_repository(source, setting, streaming=streaming)]
