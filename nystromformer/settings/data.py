"""Settings of the corpus and the tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

CORPORA = ("imdb", "text", "bookcorpus_wikipedia")


@dataclass
class DataSettings:
    """Where documents come from and how they become training examples."""

    corpus: str = "imdb"
    """`imdb`, `text` or `bookcorpus_wikipedia`."""
    files: list[str] = field(default_factory=list)
    """For `text`: files or globs, .txt or .jsonl, plain or .gz or .zst."""
    text_field: str = "text"
    """For .jsonl files: the field that holds the document."""
    wikipedia: str | None = "wikimedia/wikipedia"
    """For `bookcorpus_wikipedia`: the hub's repository of Wikipedia, a local folder of Parquet, or null."""
    wikipedia_config: str | None = "20231101.en"
    wikipedia_revision: str | None = None
    bookcorpus: str | None = "bookcorpus/bookcorpus"
    """The hub's repository of BookCorpus (rows are sentences), a local folder of Parquet, or null."""
    bookcorpus_config: str | None = None
    bookcorpus_revision: str | None = "refs/convert/parquet"
    bookcorpus_rows_per_document: int = 64
    """BookCorpus has no document borders: so many consecutive rows are taken as one document."""
    streaming: bool = True
    """Read the hub's rows as they come (true) or download the data sets first (false)."""
    max_documents: int | None = None
    """Stop after so many documents of the corpus (all by default)."""
    language: str = "en"
    """Language code for the sentence splitter."""
    validation_fraction: float = 0.02
    """Share of the documents kept out of training, chosen by a hash of each document's text."""
    folder: str = "prepared"
    """Prepared data sets live here, one folder for each combination of settings."""
    workers: int = 0
    """Processes that prepare the corpus; 0 takes every core."""
    short_sequence_probability: float = 0.1
    """Share of chunks cut at a random shorter length, as ALBERT does."""
    masking_probability: float = 0.15
    """Share of the real tokens that are predicted."""
    masking: str = "token"
    """`token`, `whole_word`, or `ngram` (spans of 1 to 3 words, as ALBERT)."""

    def complaints(self) -> Iterator[str]:
        if self.corpus not in CORPORA:
            yield f"data.corpus={self.corpus!r} is unknown: write one of {', '.join(CORPORA)}"
        if self.corpus == "text" and not self.files:
            yield "data.files is empty: write data.files=[my.txt] (files or globs, .txt or .jsonl)"
        if self.corpus == "bookcorpus_wikipedia" and not (self.wikipedia or self.bookcorpus):
            yield "data.wikipedia and data.bookcorpus are both empty: write at least one of them"
        if not 0 < self.validation_fraction < 1:
            yield (
                f"data.validation_fraction={self.validation_fraction} is impossible: write a share "
                "above 0 and below 1"
            )
        if self.max_documents is not None and self.max_documents < 2:
            yield f"data.max_documents={self.max_documents} is too small: write at least 2"
        if self.workers < 0:
            yield f"data.workers={self.workers} is impossible: write 0 (every core) or a count"
        if not 0 <= self.short_sequence_probability <= 1:
            yield (
                f"data.short_sequence_probability={self.short_sequence_probability} is impossible: "
                "write a probability from 0 to 1"
            )
        if not 0 < self.masking_probability < 1:
            yield (
                f"data.masking_probability={self.masking_probability} is impossible: write a share "
                "above 0 and below 1"
            )
        if self.masking not in ("token", "whole_word", "ngram"):
            yield f"data.masking={self.masking!r} is unknown: write token, whole_word or ngram"
        if self.bookcorpus_rows_per_document < 2:
            yield (
                f"data.bookcorpus_rows_per_document={self.bookcorpus_rows_per_document} is too small: "
                "a sentence-order pair needs at least 2 sentences"
            )


@dataclass
class TokenizerSettings:
    """A tokenizer to train on the corpus, or one to take."""

    path: str | None = None
    """A folder or hub name of a trained tokenizer; empty trains one on the corpus."""
    vocab_size: int = 30522
    """Size of the WordPiece vocabulary to train."""
    lowercase: bool = True
    min_frequency: int = 2
    """Pairs seen less often are not merged."""
    sample_megabytes: int = 200
    """Train on at most so much text of the training documents."""

    def complaints(self) -> Iterator[str]:
        if self.path is None and self.vocab_size < 300:
            yield f"tokenizer.vocab_size={self.vocab_size} is too small: write at least 300"
        if self.min_frequency < 1:
            yield f"tokenizer.min_frequency={self.min_frequency} is impossible: write at least 1"
        if self.sample_megabytes < 1:
            yield f"tokenizer.sample_megabytes={self.sample_megabytes} is impossible: write at least 1"
