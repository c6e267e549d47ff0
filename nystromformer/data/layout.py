"""Batches in the shape that the training computes: what is predicted, and how wide the rows are.

    labels (B, L)  →  prediction_positions (P,), places in the batch's B·W tokens, row after row
                      prediction_labels (P,), the original tokens there

Picking tokens by `labels != -100` gives a tensor whose size only the device knows: a GPU must be waited
for, and compiled code has a new shape each time. Positions drawn up here, beside the batch, have neither
fault. B rows, L tokens of the longest, W of the layout, P predicted.

With `widths` the shapes are static: W is the next of a few widths, and P the most that B rows of W tokens
can predict. Empty slots point at the first token and their label is ignored: they weigh nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from nystromformer.data.pairs import IGNORED

MOST_WIDTHS = 8
"""Each is one more shape to compile, and fewer are more padding."""
_MULTIPLE = 8  # what tensor cores want

Batch = dict[str, torch.Tensor]
"""Tensors by name; rows in several parts, each as wide as its longest, are `input_ids`, `input_ids.1`, …"""


def parts(batch: Batch, name: str) -> list[torch.Tensor]:
    """A tensor of each part of a batch."""
    return [x for key, x in batch.items() if key.partition(".")[0] == name]


@dataclass(frozen=True)
class Layout:
    """How a drawn batch is laid out; a pure function of the batch."""

    pad_id: int
    widths: tuple[int, ...] = ()
    """Ascending; empty leaves each batch as wide as its longest row."""
    slots: tuple[int, ...] = ()
    """Predictions that a row of each width can have."""

    def __call__(self, batch: Batch) -> Batch:
        """The batch with `prediction_positions` and `prediction_labels` in place of `labels`."""
        rows, length = batch["labels"].shape
        which = next((i for i, width in enumerate(self.widths) if width >= length), None)
        if which is not None:
            fill = {"input_ids": self.pad_id, "labels": IGNORED}
            short = self.widths[which] - length
            batch = {
                name: F.pad(x, (0, short), value=fill.get(name, 0)) if x.ndim == 2 else x
                for name, x in batch.items()
            }
        labels = batch["labels"].flatten()
        positions = (labels != IGNORED).nonzero()[:, 0]
        predicted = labels[positions]
        if which is not None:
            empty = rows * self.slots[which] - len(positions)
            positions = F.pad(positions, (0, empty))
            predicted = F.pad(predicted, (0, empty), value=IGNORED)
        rest = {name: x for name, x in batch.items() if name != "labels"}
        return {**rest, "prediction_positions": positions, "prediction_labels": predicted}


def best_widths(lengths: NDArray[np.int64], largest: int, count: int = MOST_WIDTHS) -> tuple[int, ...]:
    """At most `count` widths that pad rows of these lengths the least, each row to the next one.

    Multiples of 8 and `largest`, which is always among them. Exact, by dynamic programming over the
    candidates: c widths up to candidate i are best when c − 1 widths up to some candidate j are, and
    the rows between go to i.
    """
    candidates = np.unique(np.minimum(np.arange(_MULTIPLE, largest + _MULTIPLE, _MULTIPLE), largest))
    rows = np.bincount(np.searchsorted(candidates, lengths), minlength=len(candidates))
    rows_before = np.concatenate([[0], np.cumsum(rows)])
    # (j, i): places taken by the rows of candidates j … i when all are padded to candidate i.
    places = (rows_before[None, 1:] - rows_before[:-1, None]) * candidates.astype(np.float64)
    places[np.tril_indices(len(candidates), -1)] = np.inf
    best, chosen = places[0], []
    for _ in range(min(count, len(candidates)) - 1):
        total = np.concatenate([[0.0], best[:-1]])[:, None] + places
        chosen.append(total.argmin(axis=0))  # where the rows of the widest width begin
        best = total.min(axis=0)
    widths, last = [], len(candidates) - 1
    for begins in reversed(chosen):
        widths.append(int(candidates[last]))
        last = int(begins[last]) - 1
        if last < 0:
            break
    else:
        widths.append(int(candidates[last]))
    return tuple(reversed(widths))
