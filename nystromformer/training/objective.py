"""What a model is trained for: the part of a training that `step` and `loop` do not know.

objective    the losses of a batch, and what each is a mean over
batches      which rows each step takes
measurement  what is looked at between the steps, and the number by which a checkpoint is the best
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nystromformer.data.examples import Key
from nystromformer.data.layout import Batch


class Objective(Protocol):
    """Losses that are added up, each a mean over something that can be counted.

    The mean is over the whole global batch, however that is cut into micro-batches and processes.
    """

    @property
    def losses(self) -> tuple[str, ...]:
        """Their names."""

    def counts(self, batch: Batch) -> tuple[int, ...]:
        """What each loss of a micro-batch is a mean over, counted; where it still is in the CPU's memory."""

    def means(self, model: torch.nn.Module, batch: Batch) -> tuple[Tensor, ...]:
        """Each loss of a micro-batch on the device, without waiting for it."""

    def flops(self, lengths: NDArray[np.int64], counts: list[int]) -> float:
        """Model FLOPs of one step on rows of so many real tokens; see `flops`."""


class Batches(Protocol):
    """This process's share of each step, a pure function of the step."""

    def training(self, start_step: int, *, pin_memory: bool) -> Iterator[list[Batch]]:
        """The micro-batches of each step that is still to do, one step at a time."""

    def of_step(self, step: int) -> list[Batch]:
        """The micro-batches of one step, counted from 0, drawn again."""

    def keys_of_step(self, step: int) -> list[Key]:
        """(epoch, index) of every example of one step, over all processes."""


@dataclass(frozen=True)
class Measured:
    """What was found at a step."""

    figures: dict[str, Any]
    """For metrics.jsonl; those whose names end in `loss` must be finite."""
    line: str
    """For people."""
    best_by: float | None = None
    """The checkpoint with the lowest is the best; None where this does not decide."""


@dataclass(frozen=True)
class Measurement:
    """What is looked at between the steps: at the last one, and where it is due."""

    kind: str
    """Of the event in metrics.jsonl."""
    due: Callable[[int], bool]
    """After which steps, counted from 1."""
    take: Callable[[int], Measured]
    """Computed after a step, by all processes together."""
    draw: Callable[[], None] = field(default=lambda: None)
    """Called by the main process once it is recorded."""


def every(steps: int) -> Callable[[int], bool]:
    """Whether a step, counted from 1, is one of every so many; 0 for never."""
    return lambda step: steps > 0 and step % steps == 0
