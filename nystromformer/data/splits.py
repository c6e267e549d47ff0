"""The training and the validation split, filled side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nystromformer.data.segmentation import Chunks, Counts
from nystromformer.data.shards import ShardInfo, ShardWriter
from nystromformer.errors import UserError

SPLITS = ("train", "validation")


class SplitWriter:
    """Writes each document to the split its hash names, and sees to it that no split stays empty.

    In a tiny corpus all hashes may fall on one side. So one document is held back: it goes to its own
    split as soon as both have another one, and to the empty split if that never happens.
    """

    def __init__(self, folder: Path, vocab_size: int) -> None:
        self._writers = {split: ShardWriter(folder, split, vocab_size) for split in SPLITS}
        self._held: tuple[str, Chunks] | None = None
        self.counts = {split: Counts() for split in SPLITS}

    def add(self, split: str, chunks: Chunks, counts: Counts, leading_chunks: int) -> None:
        """Append the chunks of some documents, of which the first document has `leading_chunks`."""
        self.counts[split].add(counts)
        if self._held is None and len(chunks):
            held, chunks = chunks.divide(leading_chunks)
            self._held = split, held
        self._writers[split].append(chunks)

    def close(self) -> tuple[dict[str, list[ShardInfo]], NDArray[np.int64]]:
        """Write the rest; return the shards of each split and the training split's unigram counts.

        Raises UserError when the corpus has not one usable document for each split.
        """
        if self._held is not None:
            self._place_held_document(*self._held)
        for split in SPLITS:
            if not self.counts[split].chunks:
                raise UserError(self._too_small())
        shards = {split: writer.close() for split, writer in self._writers.items()}
        return shards, self._writers["train"].unigram_counts

    def _place_held_document(self, split: str, chunks: Chunks) -> None:
        (other,) = (name for name in SPLITS if name != split)
        if not self.counts[other].chunks and self.counts[split].documents > 1:
            own = Counts(1, len(chunks.sentence_lengths), len(chunks.tokens), len(chunks))
            self.counts[split].subtract(own)
            self.counts[other].add(own)
            split = other
        self._writers[split].append(chunks)

    def _too_small(self) -> str:
        usable = sum(counts.documents for counts in self.counts.values())
        short = sum(counts.dropped_documents for counts in self.counts.values())
        return (
            f"the corpus is too small: {usable} usable documents ({short} more have fewer than two "
            "sentences), where training and validation need one each: give data more documents of several "
            "sentences"
        )
