"""Batches of rows of like length: a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import numpy as np

from nystromformer.data.examples import Key
from nystromformer.data.layout import Batch
from nystromformer.data.order import GlobalBatches
from nystromformer.tasks.rows import Encoded

Collate = Callable[[Encoded, Sequence[int]], Batch]
"""Some rows as a batch, padded to the longest of them."""


class TaskBatches:
    """The training's batches; what step t holds does not depend on where the training was stopped.

    Args:
        micro_batch_size: rows at once; it divides a process's share of `batch_size`, which None takes.
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
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._encoded = encoded
        self._collate = collate
        self._steps = steps
        self._seed = seed
        self._mine = slice(rank, None, world_size)
        self._micro = micro_batch_size or batch_size // world_size
        self._order = GlobalBatches(
            len(encoded),
            global_batch_size=batch_size,
            micro_batch_size=self._micro,
            world_size=world_size,
            seed=seed,
            num_steps=steps,
            lengths=lambda indices: encoded.lengths[indices],
            length_groups=1,
        )

    def training(self, start_step: int, *, pin_memory: bool) -> Iterator[list[Batch]]:
        """The micro-batches of each step that is still to do, one step at a time."""
        for step in range(start_step, self._steps):
            batches = self.of_step(step)
            yield (
                [{name: x.pin_memory() for name, x in b.items()} for b in batches] if pin_memory else batches
            )

    def of_step(self, step: int) -> list[Batch]:
        """This process's micro-batches of a step, counted from 0."""
        encoded, rows = self._encoded.drawn(self.keys_of_step(step), self._seed)
        starts = range(0, len(rows), self._micro)[self._mine]
        return [self._collate(encoded, rows[start : start + self._micro]) for start in starts]

    def keys_of_step(self, step: int) -> list[Key]:
        """(epoch, index) of every row of a step."""
        return self._order.global_keys(step)


def ordered_batches(
    encoded: Encoded,
    size: int,
    collate: Collate,
    tokens: int | None = None,
    *,
    share: tuple[int, int] = (0, 1),
) -> Iterator[tuple[list[int], Batch]]:
    """All rows once, the longest first, so that memory runs out at once or never: which rows, the batch.

    Args:
        size: most rows at once.
        tokens: most tokens at once, padding included; a longer row goes by itself.
        share: which of how many processes this is, each of which takes a part of the batches.
    """
    process, processes = share
    for rows in islice(_parts(encoded, size, tokens), process, None, processes):
        yield rows, collate(encoded, rows)


def _parts(encoded: Encoded, size: int, tokens: int | None) -> Iterator[list[int]]:
    """The rows of each batch."""
    rows: list[int] = []
    width = texts = 0
    for row in np.argsort(-encoded.lengths, kind="stable").tolist():
        widest, most = max(width, int(encoded.lengths[row])), max(texts, encoded.texts_of(row))
        full = len(rows) == size or (tokens is not None and (len(rows) + 1) * widest * most > tokens)
        if rows and full:
            yield rows
            rows, widest, most = [], int(encoded.lengths[row]), encoded.texts_of(row)
        rows.append(row)
        width, texts = widest, most
    if rows:
        yield rows
