"""Batches of rows of like length, padded to the longest of each: a pure function of (seed, step).

Shapes: B rows, N tokens of the longest row.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from nystromformer.data.examples import Key
from nystromformer.data.layout import Batch
from nystromformer.data.order import GlobalBatches
from nystromformer.tasks.encoding import Encoded


class TaskBatches:
    """The training's batches; what step t holds does not depend on where the training was stopped.

    Args:
        micro_batch_size: rows at once; it divides a process's share of `batch_size`, which None takes.
        regression: labels are numbers, not class ids.
    """

    def __init__(
        self,
        encoded: Encoded,
        *,
        batch_size: int,
        micro_batch_size: int | None,
        seed: int,
        steps: int,
        pad_token_id: int,
        regression: bool,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._encoded = encoded
        self._pad = pad_token_id
        self._regression = regression
        self._steps = steps
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
        rows = [index for _, index in self.keys_of_step(step)]
        starts = range(0, len(rows), self._micro)[self._mine]
        return [self._batch(rows[start : start + self._micro]) for start in starts]

    def keys_of_step(self, step: int) -> list[Key]:
        """(epoch, index) of every row of a step."""
        return self._order.global_keys(step)

    def _batch(self, rows: list[int]) -> Batch:
        return collate(self._encoded, rows, self._pad, regression=self._regression)


def ordered_batches(encoded: Encoded, size: int, pad_token_id: int) -> Iterator[tuple[list[int], Batch]]:
    """All rows once, the longest first, so that memory runs out at once or never: which rows, the batch."""
    order = np.argsort(-encoded.lengths, kind="stable").tolist()
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        yield rows, collate(encoded, rows, pad_token_id)


def collate(encoded: Encoded, rows: list[int], pad_token_id: int, *, regression: bool | None = None) -> Batch:
    """input_ids, attention_mask, (token_type_ids), all (B, N), and with `regression` not None labels (B,)."""
    width = max(len(encoded.input_ids[row]) for row in rows)

    def padded(source: list[list[int]], filling: int) -> torch.Tensor:
        return torch.tensor([source[row] + [filling] * (width - len(source[row])) for row in rows])

    batch = {
        "input_ids": padded(encoded.input_ids, pad_token_id),
        "attention_mask": torch.tensor(
            [[1] * len(encoded.input_ids[row]) + [0] * (width - len(encoded.input_ids[row])) for row in rows]
        ),
    }
    if encoded.token_type_ids is not None:
        batch["token_type_ids"] = padded(encoded.token_type_ids, 0)
    if regression is not None:
        assert encoded.labels is not None
        kind = torch.float32 if regression else torch.int64
        batch["labels"] = torch.tensor([encoded.labels[row] for row in rows], dtype=kind)
    return batch
