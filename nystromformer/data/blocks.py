"""A corpus as a stream of blocks: consecutive documents, cleaned, each text once.

    documents of all parts  →  clean  →  empty? duplicate? left out by its weight? counted and dropped
                            →  batches of about a megabyte, for the workers
                            →  blocks of `shard_megabytes`: the unit that is written, resumed and shared

Which documents a block holds depends on the corpus and on `shard_megabytes` alone. So whoever makes
block 7, in whatever order, with any number of workers, on any machine, makes the same bytes. The price is
that everybody reads the corpus from the beginning, at some 130 MB/s: a duplicate is known only to those
who saw the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import NamedTuple

import numpy as np

from nystromformer.data import stateless_random as random
from nystromformer.data.cleaning import clean
from nystromformer.data.corpora import Corpus
from nystromformer.data.documents import text_hash
from nystromformer.data.duplicates import HashSet

_BATCH_BYTES = 2**20  # what a worker takes at once; the chunks do not depend on it
_WEIGHT_SALT = 0x57E16877  # apart from what decides the split, which is the hash itself


class Text(NamedTuple):
    """A document as the workers get it."""

    text: str
    hash: int
    copies: int
    """How often it is in the training split; a document of the validation split is there once."""


@dataclass
class ReadCounts:
    """What was read of one part of the corpus, and what of it was dropped."""

    documents: int = 0
    """All that were read, those dropped included."""
    bytes: int = 0
    """Of the cleaned text, in UTF-8."""
    empty: int = 0
    """Documents of nothing but white space and control characters."""
    malformed: int = 0
    """Rows without a text that were skipped, see data.malformed_rows."""
    duplicates: int = 0
    """Documents whose cleaned text was there before."""
    left_out: int = 0
    """Documents left out by a weight below 1."""
    first: dict[str, str] = field(default_factory=dict)
    """Where the first empty and the first malformed one are."""

    def add(self, other: ReadCounts) -> None:
        for counted in fields(self):
            if counted.name != "first":
                setattr(self, counted.name, getattr(self, counted.name) + getattr(other, counted.name))
        self.first = other.first | self.first

    def count(self, read: Read) -> None:
        """Count one document."""
        self.documents += 1
        self.bytes += read.size
        if read.dropped:
            setattr(self, read.dropped, getattr(self, read.dropped) + 1)
            if read.dropped in ("empty", "malformed"):
                self.first.setdefault(read.dropped, read.place)


class Read(NamedTuple):
    """What became of one document."""

    part: int
    size: int
    """Of its cleaned text, in bytes."""
    dropped: str | None
    """The name in ReadCounts, or None where `text` is kept."""
    text: Text | None
    place: str
    """The file and line it came from."""


def read_texts(corpus: Corpus) -> Iterator[Read]:
    """Read the corpus once, in order: every document cleaned, each text kept the first time only."""
    seen = HashSet()
    weights = [part.settings.weight for part in corpus.parts]
    for part, document in corpus.documents():
        place = document.place
        if document.fault:
            yield Read(part, 0, "malformed", None, place)
            continue
        text = clean(document.text)
        size = len(text.encode())
        if not text:
            yield Read(part, size, "empty", None, place)
            continue
        document_hash = text_hash(text)
        if not seen.add(document_hash):
            yield Read(part, size, "duplicates", None, place)
        elif copies := copies_of(document_hash, weights[part]):
            yield Read(part, size, None, Text(text, document_hash, copies), place)
        else:
            yield Read(part, size, "left_out", None, place)


@dataclass
class Batch:
    """Some documents of one block."""

    block: int
    read: list[ReadCounts]
    """For each part, what was read since the batch before."""
    documents: list[Text] = field(default_factory=list)
    bytes: int = 0
    """Of the documents' text."""
    ends_block: bool = False


class Blocks:
    """Iterate once over the corpus' batches; `count` is known at the end."""

    def __init__(self, corpus: Corpus, shard_bytes: float) -> None:
        self._corpus = corpus
        self._shard_bytes = shard_bytes
        self.count: int | None = None

    def __iter__(self) -> Iterator[Batch]:
        batch = self._batch(0)
        in_block = 0  # bytes
        for read in read_texts(self._corpus):
            batch.read[read.part].count(read)
            if read.text is None:
                continue
            batch.documents.append(read.text)
            batch.bytes += read.size
            in_block += read.size * read.text.copies
            batch.ends_block = in_block >= self._shard_bytes
            if batch.ends_block or batch.bytes >= _BATCH_BYTES:
                full, batch = batch, self._batch(batch.block + batch.ends_block)
                yield full
                if full.ends_block:
                    in_block = 0
        if in_block or any(counts.documents for counts in batch.read):
            batch.ends_block = True
            yield batch
        self.count = batch.block + batch.ends_block

    def _batch(self, block: int) -> Batch:
        return Batch(block, [ReadCounts() for _ in self._corpus.parts])


def copies_of(document_hash: int, weight: float) -> int:
    """How often an epoch shows the document: `weight`, rounded up for the share of the documents that
    makes the average right. The same for any seed."""
    whole = int(weight)
    if weight == whole:
        return whole
    draw = random.uniform(random.mix(np.uint64(document_hash) ^ random.mix(_WEIGHT_SALT)))
    return whole + int(draw[0] < weight - whole)
