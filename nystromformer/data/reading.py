"""The passes over a corpus: once for what cannot be known before its end, once block by block.

    documents of all parts  →  clean  →  empty? duplicate? left out by its weight? counted and dropped
                            →  batches of about a megabyte, for the workers
                            →  blocks of `shard_megabytes`: the unit that is written, resumed and shared

Which documents a block holds depends on the corpus and on `shard_megabytes` alone. So whoever makes
block 7, in whatever order, with any number of workers, on any machine, makes the same bytes. The price is
that everybody reads the corpus from the beginning, at some 130 MB/s: a duplicate is known only to those
who saw the first. Before it, `survey` finds the sample that a tokenizer is trained on, and the lowest
hashes where so many documents are validation's, in memory that does not grow with the corpus.
"""

from __future__ import annotations

import heapq
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nystromformer.data import stateless_random as random
from nystromformer.data.corpora import Corpus
from nystromformer.data.documents import clean, text_hash, validation_below
from nystromformer.errors import UserError
from nystromformer.settings import PrepareSettings

if TYPE_CHECKING:
    from rich.progress import Progress

_BATCH_BYTES = 2**20  # what a worker takes at once; the chunks do not depend on it
_WEIGHT_SALT = 0x57E16877  # apart from what decides the split, which is the hash itself


class Read(NamedTuple):
    """A document that was read, and what became of it."""

    part: int  # of the corpus
    place: str
    """The file and line it came from."""
    text: str
    """Cleaned."""
    size: int
    """Of the text, in bytes."""
    hash: int = 0
    copies: int = 0
    """How often it is in the training split; a document of the validation split is there once."""
    dropped: str = ""
    """Why it is not kept, by the name in ReadCounts; empty where it is."""


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


def read_texts(corpus: Corpus) -> Iterator[Read]:
    """Read the corpus once, in order: every document cleaned, each text kept the first time only."""
    seen = HashSet()
    weights = [part.settings.weight for part in corpus.parts]
    for part, document in corpus.documents():
        text = "" if document.fault else clean(document.text)
        read = Read(part, document.place, text, len(text.encode()))
        if not text:
            yield read._replace(dropped="malformed" if document.fault else "empty")
        elif not seen.add(document_hash := text_hash(text)):
            yield read._replace(dropped="duplicates")
        else:
            copies = copies_of(document_hash, weights[part])
            yield read._replace(hash=document_hash, copies=copies, dropped="" if copies else "left_out")


@dataclass
class DocumentBatch:
    """Some documents of one block."""

    block: int
    read: list[ReadCounts]
    """For each part, what was read since the batch before."""
    documents: list[Read] = field(default_factory=list)
    bytes: int = 0
    """Of the documents' text."""
    ends_block: bool = False


class Blocks:
    """Iterate once over the corpus' batches; `count` is known at the end."""

    def __init__(self, corpus: Corpus, shard_bytes: float) -> None:
        self._corpus = corpus
        self._shard_bytes = shard_bytes
        self.count: int | None = None

    def __iter__(self) -> Iterator[DocumentBatch]:
        batch = self._batch(0)
        in_block = 0  # bytes
        for read in read_texts(self._corpus):
            batch.read[read.part].count(read)
            if read.dropped:
                continue
            batch.documents.append(read)
            batch.bytes += read.size
            in_block += read.size * read.copies
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

    def _batch(self, block: int) -> DocumentBatch:
        return DocumentBatch(block, [ReadCounts() for _ in self._corpus.parts])


def copies_of(document_hash: int, weight: float) -> int:
    """How often an epoch shows the document: `weight`, rounded up for the share of the documents that
    makes the average right. The same for any seed."""
    whole = int(weight)
    if weight == whole:
        return whole
    draw = random.uniform(random.salted(document_hash, _WEIGHT_SALT))
    return whole + int(draw[0] < weight - whole)


# --- which documents were seen before -----------------------------------------------------------------

_RECENT = 2**17
"""Hashes that are kept in a Python set, 10 MB of it, before they join the sorted array."""


class HashSet:
    """A growing set of 64-bit hashes.

    Most of it is one sorted array of 8 bytes a hash; while a batch of new ones is merged there are two of
    them. Wikipedia and BookCorpus, eight million documents, take 128 MB at the most. Two different texts
    share a hash with a probability of n² / 2⁶⁵: 2 in a million for those eight million.
    """

    def __init__(self) -> None:
        self._sorted = np.empty(0, np.uint64)
        self._recent: set[int] = set()

    def __len__(self) -> int:
        return len(self._sorted) + len(self._recent)

    def add(self, document_hash: int) -> bool:
        """Take the hash in; False if it is there already."""
        if document_hash in self._recent:
            return False
        value = np.uint64(document_hash)
        place = int(self._sorted.searchsorted(value))
        if place < len(self._sorted) and self._sorted[place] == value:
            return False
        self._recent.add(document_hash)
        if len(self._recent) >= _RECENT:
            recent = np.sort(np.fromiter(self._recent, np.uint64, len(self._recent)))
            self._recent.clear()
            # numpy's stable sort merges two sorted runs in one pass.
            self._sorted = np.concatenate([self._sorted, recent])
            self._sorted.sort(kind="stable")
        return True


# --- a first reading of the whole corpus --------------------------------------------------------------

_MEGABYTE = 10**6
_SAMPLE_SALT = 0x5A3F1E  # apart from what decides the split


@dataclass(frozen=True)
class Survey:
    """What one pass tells of a corpus."""

    bytes: int
    """Of the cleaned text that was read."""
    validation_below: int
    """Documents of hashes below it are validation's."""


class _Sample:
    """The texts of the lowest keys that together fit into a number of bytes.

    The keys are hashes, so the sample is spread evenly over the corpus whatever its order and size.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._bytes = 0
        self._heap: list[tuple[int, int, str]] = []  # -key, size, text: the highest key first

    def add(self, key: int, size: int, text: str) -> None:
        if self._bytes > self._budget and -key < self._heap[0][0]:
            return
        heapq.heappush(self._heap, (-key, size, text))
        self._bytes += size
        while self._bytes - self._heap[0][1] > self._budget:  # full without the highest
            self._bytes -= heapq.heappop(self._heap)[1]

    def texts(self) -> list[str]:
        texts = [text for _, _, text in sorted(self._heap, reverse=True)]
        if self._bytes <= self._budget:
            return texts
        # One document beyond the budget is there by its beginning, so as not to stay empty.
        return texts[:-1] or [texts[0][: self._budget]]


def survey(
    corpus: Corpus, settings: PrepareSettings, *, sample: bool, show_progress: bool
) -> tuple[Survey, list[str]]:
    """Read the corpus once: its survey and, if asked for, the tokenizer's sample of training documents.

    If all documents are validation's, as can be with a handful, they are the sample.
    Raises UserError when there are no more documents than `validation_documents`.
    """
    data = settings.data
    budget = settings.tokenizer.sample_megabytes * _MEGABYTE if sample else 0
    by_share = validation_below(data.validation_fraction)
    training, validations = _Sample(budget), _Sample(min(budget, 10**6))
    lowest = _Lowest(data.validation_documents) if data.validation_documents else None
    size_read = 0
    with DocumentProgress("reading", total_bytes=corpus.total_bytes, show=show_progress) as progress:
        for read in read_texts(corpus):
            size_read += read.size
            progress.advance(1, read.size)
            if read.dropped:
                continue
            validation = read.hash < by_share if lowest is None else lowest.add(read.hash)
            if sample:
                key = int(random.salted(read.hash, _SAMPLE_SALT)[0])
                (validations if validation else training).add(key, read.size, read.text)
    found = Survey(size_read, lowest.threshold() if lowest else by_share)
    return found, training.texts() or validations.texts()


class _Lowest:
    """The `count` lowest of the hashes that were added."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._negated: list[int] = []  # a heap, the highest hash first
        self._added = 0

    def add(self, document_hash: int) -> bool:
        """Whether the hash is among the lowest so far."""
        self._added += 1
        if len(self._negated) < self._count:
            heapq.heappush(self._negated, -document_hash)
            return True
        return -heapq.heappushpop(self._negated, -document_hash) != document_hash

    def threshold(self) -> int:
        """The hash from which on documents are training's."""
        if self._added <= self._count:
            raise UserError(
                f"data.validation_documents={self._count} leaves nothing to train on: the corpus has "
                f"{self._added} different documents; write fewer"
            )
        return 1 - self._negated[0]


# --- how far it is ------------------------------------------------------------------------------------

_SECONDS_BETWEEN_LINES = 10.0


class DocumentProgress:
    """A bar on a terminal, a line every ten seconds elsewhere, nothing when not `show`n; on stderr.

    It shows documents, MB, MB/s, tokens/s and the time left. `total_bytes` is None where the corpus' size
    is unknown (the hub, compressed files); then there is no time left to tell.
    """

    def __init__(self, title: str, *, total_bytes: int | None = None, show: bool = True) -> None:
        self._title, self._total, self._show = title, total_bytes, show
        self._documents = self._bytes = self._tokens = self._passed = 0
        self._started = self._last_line = time.monotonic()
        self._bar: Progress | None = None
        if show and sys.stderr.isatty():
            self._bar = _bar()
            self._task = self._bar.add_task(title, total=total_bytes, figures=self)

    def __enter__(self) -> DocumentProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._show and kind is None:
            self._print_line()

    def advance(self, documents: int, read: int, tokens: int = 0) -> None:
        """Count `documents` more, of `read` bytes, that became `tokens` tokens."""
        self._documents += documents
        self._bytes += read
        self._tokens += tokens
        self._show_now()

    def passed(self, read: int) -> None:
        """Count `read` bytes that were done before or are another machine's."""
        if not self._bytes:
            self._started = time.monotonic()  # passing is much faster than the work: no rate follows from it
        self._passed += read
        self._show_now()

    def _show_now(self) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=self._bytes + self._passed)
        elif self._show and time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._print_line()

    def _print_line(self) -> None:
        self._last_line = time.monotonic()
        print(f"{self._title}: {self}", file=sys.stderr, flush=True)

    def __str__(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-9)
        megabytes = self._bytes / 1e6
        parts = [f"{self._documents:,} documents", f"{megabytes:,.1f} MB", f"{megabytes / seconds:.1f} MB/s"]
        if self._tokens:
            parts.append(f"{self._tokens / seconds:,.0f} tokens/s")
        left = (self._total or 0) - self._bytes - self._passed
        if left > 0 and self._bytes:
            parts.append(f"{duration(left / self._bytes * seconds)} left")
        if self._passed:
            parts.append(f"{self._passed / 1e6:,.1f} MB passed over")
        return ", ".join(parts)


def _bar() -> Progress:
    from rich.console import Console  # not above: every worker imports this module
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn()
    figures = TextColumn("{task.fields[figures]}", style="", markup=False)
    return Progress(*columns, figures, console=Console(stderr=True))


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: 1:02:03, or 2:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
