"""Settings of the corpus and the tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

CORPORA = ("imdb", "text", "bookcorpus_wikipedia", "mixture")
SOURCE_KINDS = ("text", "jsonl", "wikiextractor", "parquet", "hub", "wikipedia", "bookcorpus", "imdb")
TOKENIZER_KINDS = ("wordpiece", "unigram", "bpe")
MALFORMED = ("stop", "skip")


@dataclass
class SourceSettings:
    """One source of a mixture: an entry of `data.sources`."""

    kind: str = "text"
    """`text` (.txt and .jsonl files), `jsonl`, `wikiextractor` (its output, text or --json), `parquet`,
    `hub`, `wikipedia`, `bookcorpus` or `imdb`."""
    files: list[str] = field(default_factory=list)
    """For the kinds that are files: paths or globs; plain, .gz, .zst, .bz2 or .xz. WikiExtractor's and
    Parquet's may be folders."""
    repository: str | None = None
    """For `hub`: the repository. `wikipedia` and `bookcorpus` know theirs."""
    config: str | None = None
    revision: str | None = None
    text_field: str = "text"
    """The field of a JSON object, or the column of a table, that holds the text."""
    rows_per_document: int | None = None
    """So many consecutive rows of a table are one document: 64 for `bookcorpus`, whose rows are
    sentences, else 1."""
    weight: float = 1.0
    """How often an epoch shows a document of this source: 2 twice, 0.5 a fixed half of the documents
    once, 1.5 all once and a fixed half of them again. A document in the validation split is there once."""
    max_documents: int | None = None
    """Read only so many documents from the beginning."""
    max_megabytes: float | None = None
    """Read only so much text from the beginning, in millions of bytes of UTF-8."""

    def complaints(self, name: str) -> Iterator[str]:
        """What is wrong with this entry, which messages call `name`, e.g. data.sources[0]."""
        if self.kind not in SOURCE_KINDS:
            yield f"{name}.kind={self.kind!r} is unknown: write one of {', '.join(SOURCE_KINDS)}"
        if self.kind in ("text", "jsonl", "wikiextractor", "parquet") and not self.files:
            yield f"{name}.files is empty: write files:[PATH] (files or globs) beside kind:{self.kind}"
        if self.kind == "hub" and not self.repository:
            yield f"{name}.repository is empty: write repository:OWNER/NAME beside kind:hub"
        if not 0 < self.weight <= 100:
            yield f"{name}.weight={self.weight} is impossible: write a number above 0, at most 100"
        if self.rows_per_document is not None and self.rows_per_document < 1:
            yield f"{name}.rows_per_document={self.rows_per_document} is impossible: write at least 1"
        if self.max_documents is not None and self.max_documents < 1:
            yield f"{name}.max_documents={self.max_documents} is too small: write at least 1"
        if self.max_megabytes is not None and not 0 < self.max_megabytes < float("inf"):
            yield f"{name}.max_megabytes={self.max_megabytes} is impossible: write a number above 0"


@dataclass
class DataSettings:
    """Where documents come from and how they become training examples."""

    prepared: str | None = None
    """A prepared folder to take as it is: no source is looked at, and no other setting of `data` and
    `tokenizer` that decides what is prepared is read."""
    corpus: str = "imdb"
    """`imdb`, `text`, `bookcorpus_wikipedia`, or `mixture` for what `sources` lists."""
    files: list[str] = field(default_factory=list)
    """For `text`: files or globs, .txt or .jsonl, plain or .gz, .zst, .bz2 or .xz, in either case."""
    sources: list[SourceSettings] = field(default_factory=list)
    """For `mixture`: a list of sources with weights and limits, see docs/data.md; for instance
    data.sources=[{kind:wikipedia},{kind:text,files:[a.txt],weight:2}]."""
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
    malformed_rows: str = "stop"
    """A JSON line or a row that holds no text where the text should be (a number, a missing field, broken
    JSON): `stop`, naming it, or `skip` it and count it. A null or an empty text is an empty document,
    which is skipped and counted anyway."""
    language: str = "en"
    """Language code for the sentence splitter."""
    validation_fraction: float = 0.02
    """Share of the documents kept out of training, chosen by a hash of each document's text."""
    validation_documents: int | None = None
    """Keep exactly so many documents out of training, those of the lowest hashes, instead of a share."""
    folder: str = "prepared"
    """Prepared data sets live here, one folder for each combination of settings."""
    workers: int = 0
    """Processes that prepare the corpus; 0 takes every core."""
    shard_megabytes: float = 64.0
    """Text in one shard, in millions of bytes: what a preparation that was killed loses at most, and what
    one machine of several takes at a time."""
    verify: bool = False
    """Compare every prepared file with its checksum before use; sizes are always compared."""
    short_sequence_probability: float = 0.1
    """Share of chunks cut at a random shorter length, as ALBERT does."""
    masking_probability: float = 0.15
    """Share of the real tokens that are predicted."""
    masking: str = "token"
    """`token`, `whole_word`, or `ngram` (spans of 1 to 3 words, as ALBERT)."""

    def complaints(self) -> Iterator[str]:
        if self.corpus not in CORPORA:
            yield f"data.corpus={self.corpus!r} is unknown: write one of {', '.join(CORPORA)}"
        if self.malformed_rows not in MALFORMED:
            yield f"data.malformed_rows={self.malformed_rows!r} is unknown: write stop or skip"
        if self.prepared is None:
            yield from self._complaints_of_sources()
        yield from self._complaints_of_shares()
        if self.workers < 0:
            yield f"data.workers={self.workers} is impossible: write 0 (every core) or a count"
        if not 0 < self.masking_probability < 1:
            yield (
                f"data.masking_probability={self.masking_probability} is impossible: write a share "
                "above 0 and below 1"
            )
        if self.masking not in ("token", "whole_word", "ngram"):
            yield f"data.masking={self.masking!r} is unknown: write token, whole_word or ngram"

    def _complaints_of_sources(self) -> Iterator[str]:
        if self.corpus == "text" and not self.files:
            yield "data.files is empty: write data.files=[my.txt] (files or globs, .txt or .jsonl)"
        if self.corpus == "bookcorpus_wikipedia" and not (self.wikipedia or self.bookcorpus):
            yield "data.wikipedia and data.bookcorpus are both empty: write at least one of them"
        if self.corpus == "mixture" and not self.sources:
            yield "data.sources is empty: write data.sources=[{kind:text,files:[my.txt]},...]"
        if self.corpus != "mixture" and self.sources:
            yield f"data.sources is read by data=mixture only: write that instead of data={self.corpus}"
        for number, source in enumerate(self.sources):
            yield from source.complaints(f"data.sources[{number}]")
        if self.bookcorpus_rows_per_document < 2:
            yield (
                f"data.bookcorpus_rows_per_document={self.bookcorpus_rows_per_document} is too small: "
                "a sentence-order pair needs at least 2 sentences"
            )

    def _complaints_of_shares(self) -> Iterator[str]:
        if self.validation_documents is not None and self.validation_documents < 1:
            yield f"data.validation_documents={self.validation_documents} is too small: write at least 1"
        if not 0.001 <= self.shard_megabytes <= 4000:
            yield f"data.shard_megabytes={self.shard_megabytes} is impossible: write 0.001 to 4000"
        if not 0 < self.validation_fraction < 1:
            yield (
                f"data.validation_fraction={self.validation_fraction} is impossible: write a share "
                "above 0 and below 1"
            )
        if self.max_documents is not None and self.max_documents < 2:
            yield f"data.max_documents={self.max_documents} is too small: write at least 2"
        if not 0 <= self.short_sequence_probability <= 1:
            yield (
                f"data.short_sequence_probability={self.short_sequence_probability} is impossible: "
                "write a probability from 0 to 1"
            )


@dataclass
class TokenizerSettings:
    """A tokenizer to train on the corpus, or one to take."""

    path: str | None = None
    """A folder or hub name of a trained tokenizer; empty trains one on the corpus."""
    kind: str = "wordpiece"
    """What to train: `wordpiece` (BERT's), `unigram` (SentencePiece's, as ALBERT and the published
    Nyströmformer checkpoints have) or `bpe` (byte-level, GPT-2's and RoBERTa's)."""
    vocab_size: int = 30522
    """Size of the vocabulary to train. A model rounds it up to a multiple of 64, the tokenizer does not."""
    lowercase: bool = True
    """Lower-case the text and take accents away; for `bpe` lower-case only."""
    min_frequency: int = 2
    """Pairs seen less often are not merged (`wordpiece` and `bpe`)."""
    character_coverage: float = 0.9999
    """Share of the text, by its characters, whose characters all get a piece; the rarest of them are
    unknown where they are not among the first 1,000 (`wordpiece` and `unigram`; `bpe` knows every one)."""
    sample_megabytes: int = 200
    """Train on at most so much text, from training documents spread over the whole corpus."""

    def complaints(self) -> Iterator[str]:
        if self.kind not in TOKENIZER_KINDS:
            yield f"tokenizer.kind={self.kind!r} is unknown: write one of {', '.join(TOKENIZER_KINDS)}"
        if self.path is None and self.vocab_size < 300:
            yield f"tokenizer.vocab_size={self.vocab_size} is too small: write at least 300"
        if not 0 < self.character_coverage <= 1:
            yield (
                f"tokenizer.character_coverage={self.character_coverage} is impossible: write a share above "
                "0, at most 1"
            )
        if self.min_frequency < 1:
            yield f"tokenizer.min_frequency={self.min_frequency} is impossible: write at least 1"
        if self.sample_megabytes < 1:
            yield f"tokenizer.sample_megabytes={self.sample_megabytes} is impossible: write at least 1"
