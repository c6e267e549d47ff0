"""Settings of the corpus and the tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from nystromformer.settings.schema import Section, path, place, record, result, speed

CORPORA = ("imdb", "text", "bookcorpus_wikipedia", "mixture")
SOURCE_KINDS = ("text", "jsonl", "wikiextractor", "parquet", "hub", "wikipedia", "bookcorpus", "imdb")
TOKENIZER_KINDS = ("wordpiece", "unigram", "bpe")


@dataclass
class SourceSettings(Section):
    """One source of a mixture: an entry of `data.sources`."""

    kind: str = result("text", choices=SOURCE_KINDS)
    """`text` (.txt and .jsonl files), `jsonl`, `wikiextractor` (its output, text or --json), `parquet`,
    `hub`, `wikipedia`, `bookcorpus` or `imdb`."""
    files: list[str] = path([])
    """For the kinds that are files: paths or globs; plain, .gz, .zst, .bz2 or .xz. WikiExtractor's and
    Parquet's may be folders."""
    repository: str | None = path(None)
    """For `hub`: the repository. `wikipedia` and `bookcorpus` know theirs."""
    config: str | None = path(None)
    revision: str | None = path(None)
    text_field: str = result("text")
    """The field of a JSON object, or the column of a table, that holds the text."""
    rows_per_document: int | None = result(None, at_least=1)
    """So many consecutive rows of a table are one document: 64 for `bookcorpus`, whose rows are
    sentences, else 1."""
    weight: float = result(1.0, above=0, at_most=100)
    """How often an epoch shows a document of this source: 2 twice, 0.5 a fixed half of the documents
    once, 1.5 all once and a fixed half of them again. A document in the validation split is there once."""
    max_documents: int | None = result(None, at_least=1, fault="too small")
    """Read only so many documents from the beginning."""
    max_megabytes: float | None = result(None, above=0)
    """Read only so much text from the beginning, in millions of bytes of UTF-8."""

    def complaints(self, at: str | None = None) -> Iterator[str]:
        yield from super().complaints(at)
        if self.kind in ("text", "jsonl", "wikiextractor", "parquet") and not self.files:
            yield f"{at}files is empty: write files:[PATH] (files or globs) beside kind:{self.kind}"
        if self.kind == "hub" and not self.repository:
            yield f"{at}repository is empty: write repository:OWNER/NAME beside kind:hub"


@dataclass
class DataSettings(Section, at="data"):
    """Where documents come from and how they become training examples."""

    prepared: str | None = place(None)
    """A prepared folder to take as it is: no source is looked at, and no other setting of `data` and
    `tokenizer` that decides what is prepared is read."""
    corpus: str = path("imdb", choices=CORPORA)
    """`imdb`, `text`, `bookcorpus_wikipedia`, or `mixture` for what `sources` lists."""
    files: list[str] = path([])
    """For `text`: files or globs, .txt or .jsonl, plain or .gz, .zst, .bz2 or .xz, in either case."""
    sources: list[SourceSettings] = path([])
    """For `mixture`: a list of sources with weights and limits, see docs/data.md; for instance
    data.sources=[{kind:wikipedia},{kind:text,files:[a.txt],weight:2}]."""
    text_field: str = path("text")
    """For .jsonl files: the field that holds the document."""
    wikipedia: str | None = path("wikimedia/wikipedia")
    """For `bookcorpus_wikipedia`: the hub's repository of Wikipedia, a local folder of Parquet, or null."""
    wikipedia_config: str | None = path("20231101.en")
    wikipedia_revision: str | None = path(None)
    bookcorpus: str | None = path("bookcorpus/bookcorpus")
    """The hub's repository of BookCorpus (rows are sentences), a local folder of Parquet, or null."""
    bookcorpus_config: str | None = path(None)
    bookcorpus_revision: str | None = path("refs/convert/parquet")
    bookcorpus_rows_per_document: int = path(64)
    """BookCorpus has no document borders: so many consecutive rows are taken as one document."""
    streaming: bool = speed(True)
    """Read the hub's rows as they come (true) or download the data sets first (false)."""
    max_documents: int | None = result(None, at_least=2, fault="too small")
    """Stop after so many documents of the corpus (all by default)."""
    malformed_rows: str = record("stop", choices=("stop", "skip"), write="stop or skip")
    """A JSON line or a row that holds no text where the text should be (a number, a missing field, broken
    JSON): `stop`, naming it, or `skip` it and count it. A null or an empty text is an empty document,
    which is skipped and counted anyway."""
    language: str = result("en")
    """Language code for the sentence splitter."""
    validation_fraction: float = result(0.02, noun="share", above=0, below=1)
    """Share of the documents kept out of training, chosen by a hash of each document's text."""
    validation_documents: int | None = result(None, at_least=1, fault="too small")
    """Keep exactly so many documents out of training, those of the lowest hashes, instead of a share."""
    folder: str = place("prepared")
    """Prepared data sets live here, one folder for each combination of settings."""
    workers: int = speed(0, at_least=0, write="0 (every core) or a count")
    """Processes that prepare the corpus; 0 takes every core."""
    shard_megabytes: float = result(64.0, at_least=0.001, at_most=4000)
    """Text in one shard, in millions of bytes: what a preparation that was killed loses at most, and what
    one machine of several takes at a time."""
    verify: bool = record(False)
    """Compare every prepared file with its checksum before use; sizes are always compared."""
    short_sequence_probability: float = result(0.1, at_least=0, at_most=1, write="a probability from 0 to 1")
    """Share of chunks cut at a random shorter length, as ALBERT does."""
    masking_probability: float = result(0.15, of="training", noun="share", above=0, below=1)
    """Share of the real tokens that are predicted."""
    validation_masking_probability: float | None = result(None, of="training", noun="share", above=0, below=1)
    """The same of the validation, so that runs of different shares can be compared; empty for the same."""
    sentence_order: bool = result(True, of="training")
    """Train on the order of two segments beside the masked tokens; else a row is one segment, [CLS] text
    [SEP], and the pooler stays as it was."""
    masking: str = result(
        "token", of="training", choices=("token", "whole_word", "ngram"), write="token, whole_word or ngram"
    )
    """`token`, `whole_word`, or `ngram` (spans of 1 to 3 words, as ALBERT)."""

    def complaints_together(self) -> Iterator[str]:
        if self.prepared is not None:
            return
        if self.corpus == "text" and not self.files:
            yield "data.files is empty: write data.files=[my.txt] (files or globs, .txt or .jsonl)"
        if self.corpus == "bookcorpus_wikipedia" and not (self.wikipedia or self.bookcorpus):
            yield "data.wikipedia and data.bookcorpus are both empty: write at least one of them"
        if self.corpus == "mixture" and not self.sources:
            yield "data.sources is empty: write data.sources=[{kind:text,files:[my.txt]},...]"
        if self.corpus != "mixture" and self.sources:
            yield f"data.sources is read by data=mixture only: write that instead of data={self.corpus}"
        for number, source in enumerate(self.sources):
            yield from source.complaints(f"data.sources[{number}].")
        if self.bookcorpus_rows_per_document < 2:
            yield (
                f"data.bookcorpus_rows_per_document={self.bookcorpus_rows_per_document} is too small: "
                "a sentence-order pair needs at least 2 sentences"
            )


@dataclass
class TokenizerSettings(Section, at="tokenizer"):
    """A tokenizer to train on the corpus, or one to take."""

    path: str | None = path(None)
    """A folder or hub name of a trained tokenizer; empty trains one on the corpus."""
    kind: str = result("wordpiece", choices=TOKENIZER_KINDS)
    """What to train: `wordpiece` (BERT's), `unigram` (SentencePiece's, as ALBERT and the published
    Nyströmformer checkpoints have) or `bpe` (byte-level, GPT-2's and RoBERTa's)."""
    vocab_size: int = result(30522, at_least=300, fault="too small")
    """Size of the vocabulary to train. A model rounds it up to a multiple of 64, the tokenizer does not."""
    lowercase: bool = result(True)
    """Lower-case the text and take accents away; for `bpe` lower-case only."""
    min_frequency: int = result(2, at_least=1)
    """Pairs seen less often are not merged (`wordpiece` and `bpe`)."""
    character_coverage: float = result(0.9999, noun="share", above=0, at_most=1)
    """Share of the text, by its characters, whose characters all get a piece; the rarest of them are
    unknown where they are not among the first 1,000 (`wordpiece` and `unigram`; `bpe` knows every one)."""
    sample_megabytes: int = result(200, at_least=1)
    """Train on at most so much text, from training documents spread over the whole corpus."""

    def unread(self) -> Iterable[str]:
        return () if self.path is None else ("vocab_size",)
