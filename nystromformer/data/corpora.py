"""The corpora by name."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from nystromformer.data.documents import Corpus, Document
from nystromformer.errors import UserError
from nystromformer.settings import DataSettings
from nystromformer.settings.data import CORPORA


def open_corpus(settings: DataSettings) -> Corpus:
    """The corpus that `settings.corpus` names, its inputs checked to exist but not yet read.

    Raises UserError for an unknown name, a missing package or a missing file.
    """
    # Imported on use: only `bookcorpus_wikipedia` needs the heavy `datasets`.
    if settings.corpus == "imdb":
        from nystromformer.data.imdb import Imdb

        return Imdb()
    if settings.corpus == "text":
        from nystromformer.data.text_files import TextFiles

        return TextFiles(settings.files, settings.text_field)
    if settings.corpus == "bookcorpus_wikipedia":
        from nystromformer.data.bookcorpus_wikipedia import BookCorpusWikipedia

        return BookCorpusWikipedia(settings)
    raise UserError(f"data.corpus={settings.corpus!r} is unknown: write one of {', '.join(CORPORA)}")


def read_documents(corpus: Corpus, max_documents: int | None = None) -> Iterator[Document]:
    """All documents of all sources in order, or the first `max_documents`."""
    documents = (document for i in range(len(corpus.sources)) for document in corpus.documents(i))
    return islice(documents, max_documents)
