"""Batches of rows of like length: a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from nystromformer.data.examples import Key
from nystromformer.data.layout import Batch
from nystromformer.data.order import GlobalBatches
from nystromformer.tasks.task import Encoded

Collate = Callable[[Encoded, Sequence[int]], Batch]
"""Some rows as a batch, padded to the longest of them."""


class TaskBatches:
    """The training's batches; what step t holds does not depend on where the training was stopped.

    Args:
        micro_batch_size: rows at once; it divides `batch_size`.
    """

    def __init__(
        self,
        encoded: Encoded,
        collate: Collate,
        *,
        batch_size: int,
        micro_batch_size: int | None,
        seed: int,
        steps: int,
    ) -> None:
        self._encoded = encoded
        self._collate = collate
        self._micro = micro_batch_size or batch_size
        self._order = GlobalBatches(
            len(encoded),
            global_batch_size=batch_size,
            micro_batch_size=self._micro,
            seed=seed,
            num_steps=steps,
            lengths=lambda indices: encoded.lengths[indices],
            length_groups=1,
        )

    def of_step(self, step: int) -> list[Batch]:
        """The micro-batches of a step, counted from 0."""
        rows = [index for _, index in self.keys_of_step(step)]
        parts = (rows[start : start + self._micro] for start in range(0, len(rows), self._micro))
        return [self._collate(self._encoded, part) for part in parts]

    def keys_of_step(self, step: int) -> list[Key]:
        """(epoch, index) of every row of a step."""
        return self._order.global_keys(step)


def ordered_batches(
    encoded: Encoded, size: int, collate: Collate, tokens: int | None = None
) -> Iterator[tuple[list[int], Batch]]:
    """All rows once, the longest first, so that memory runs out at once or never: which rows, the batch.

    Args:
        size: most rows at once.
        tokens: most tokens at once, padding included; a longer row goes by itself.
    """
    order = np.argsort(-encoded.lengths, kind="stable").tolist()
    rows: list[int] = []
    width = texts = 0
    for row in order:
        widest, most = max(width, int(encoded.lengths[row])), max(texts, encoded.texts_of(row))
        full = len(rows) == size or (tokens is not None and (len(rows) + 1) * widest * most > tokens)
        if rows and full:
            yield rows, collate(encoded, rows)
            rows, widest, most = [], int(encoded.lengths[row]), encoded.texts_of(row)
        rows.append(row)
        width, texts = widest, most
    if rows:
        yield rows, collate(encoded, rows)
