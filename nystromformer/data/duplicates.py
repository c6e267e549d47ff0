"""Which documents were seen before, in 16 bytes a document."""

from __future__ import annotations

import numpy as np

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
            self._merge()
        return True

    def _merge(self) -> None:
        recent = np.fromiter(self._recent, np.uint64, len(self._recent))
        recent.sort()
        self._recent.clear()
        # numpy's stable sort merges two sorted runs in one pass.
        self._sorted = np.concatenate([self._sorted, recent])
        self._sorted.sort(kind="stable")
