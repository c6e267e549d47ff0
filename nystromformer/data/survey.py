"""A first reading of the whole corpus, for what cannot be known before its end.

A tokenizer is to be trained on a sample spread over the corpus, and a fixed number of validation documents
are those of the lowest hashes. Both are found in one pass, in memory that does not grow with the corpus.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

from nystromformer.data import stateless_random as random
from nystromformer.data.blocks import read_texts
from nystromformer.data.corpora import Corpus
from nystromformer.data.documents import validation_below
from nystromformer.data.progress import DocumentProgress
from nystromformer.errors import UserError
from nystromformer.settings import PrepareSettings

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
        self._chosen: list[tuple[int, int, str]] = []  # key, size, text
        self._below = 2**64

    def add(self, key: int, size: int, text: str) -> None:
        if key < self._below:
            self._chosen.append((key, size, text))
            self._bytes += size
            if self._bytes > 1.25 * self._budget:
                self._cut()

    def texts(self) -> list[str]:
        self._cut()
        return [text for _, _, text in self._chosen]

    def _cut(self) -> None:
        self._chosen.sort()
        self._bytes = 0
        for number, (key, size, text) in enumerate(self._chosen):
            if self._bytes + size > self._budget:
                if number == 0:  # one document beyond the budget: its beginning, so as not to stay empty
                    self._chosen[0] = (key, size, text[: self._budget])
                    number = 1
                self._below = self._chosen[number][0] if number < len(self._chosen) else key + 1
                del self._chosen[number:]
                return
            self._bytes += size


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
            size, text = read.size, read.text
            size_read += size
            progress.advance(1, size)
            if text is None:
                continue
            validation = text.hash < by_share if lowest is None else lowest.add(text.hash)
            if sample:
                key = int(random.mix(np.uint64(text.hash) ^ random.mix(_SAMPLE_SALT))[0])
                (validations if validation else training).add(key, size, text.text)
    below = by_share if lowest is None else lowest.threshold()
    return Survey(size_read, below), training.texts() or validations.texts()


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
