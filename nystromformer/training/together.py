"""What one process does for all of them, however long it takes, mistakes that end all of them at once, and
small numbers that all must agree on in every step.

Training's own exchanges wait for `devices.TRAINING_TIMEOUT`. Preparing a corpus, hashing a checkpoint or
exporting a model may take hours on the main process while the others have nothing to do: they wait here, in
a group of their own, over the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator

from nystromformer.errors import UserError
from nystromformer.training.devices import numbers_on

T = TypeVar("T")

PATIENCE = timedelta(days=2)
"""How long the others wait for the main process; one that ended is noticed at once."""


class Together:
    """Outcomes that all processes share. All of them call the same methods in the same order.

    A process alone just works.
    """

    def __init__(self, accelerator: Accelerator | None) -> None:
        self.rank = accelerator.process_index if accelerator else 0
        self.count = accelerator.num_processes if accelerator else 1
        self._group = None
        if self.count > 1:
            self._group = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)

    def on_main(self, work: Callable[[], T]) -> T:
        """Do `work` on the main process alone; every process gets what it returns.

        Raises:
            UserError: the main process raised it; on every process.
        """
        if self._group is None:
            return work()
        value: T | None = None
        error: Exception | None = None
        if self.rank == 0:
            value, error = _outcome(work)
        told: list[Any] = [value, _passed_on(error)]
        torch.distributed.broadcast_object_list(told, src=0, group=self._group)
        if error or told[1]:
            raise error or told[1]
        return told[0]

    def on_all(self, work: Callable[[], T]) -> T:
        """Do `work` on every process; each gets what its own returns.

        Raises:
            UserError: one process raised it; on every process, the first one's.
        """
        if self._group is None:
            return work()
        value, error = _outcome(work)
        errors = self.gathered(_passed_on(error))
        if error and not isinstance(error, UserError):
            raise error
        for first in filter(None, errors):
            raise first
        return value  # type: ignore[return-value]

    def gathered(self, value: T) -> list[T]:
        """Every process's value, in the order of their ranks."""
        values: list[Any] = [value] * self.count
        if self._group is not None:
            torch.distributed.all_gather_object(values, value, group=self._group)
        return values


@contextmanager
def joined(accelerator: Accelerator | None) -> Iterator[Together]:
    """What the processes share, until the work is over, done or refused: then this one leaves their group.

    A group that is left to the interpreter's end may abort the process when another one went first.
    """
    try:
        yield Together(accelerator)
    finally:
        if accelerator:
            accelerator.end_training()


def _outcome(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return work(), None
    except Exception as error:
        return None, error


def _passed_on(error: Exception | None) -> UserError | None:
    """What the other processes raise: a mistake as it is, a fault of the program in a few words."""
    if error is None or isinstance(error, UserError):
        return error
    return UserError(f"another process failed: {type(error).__name__}: {error}")


class Agreement:
    """Sums a few numbers over the processes; each sum is read one step after it was asked for.

    Reading a sum at once would make the CPU wait for all the work the device has in its queue, every
    step. One step later the sum has long been computed, in front of the step that is still running,
    so the wait leaves the device busy. Every process reads the same sums at the same step, and so
    takes the same decision. A process alone needs no exchange and gets its own numbers at once.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._pending: tuple[torch.Tensor, torch.cuda.Event | None] | None = None

    def exchange(self, mine: list[float]) -> list[float]:
        """Sums of the numbers given in the call before; zeros in the first call."""
        if self._accelerator.num_processes == 1:
            return mine
        device = self._accelerator.device
        before, self._pending = self._pending, None
        sums = self._accelerator.reduce(numbers_on(device, mine), "sum")
        if device.type == "cuda":
            arrived = torch.empty(sums.shape, pin_memory=True).copy_(sums, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._pending = (arrived, event)
        else:
            self._pending = (sums, None)
        if before is None:
            return [0.0] * len(mine)
        numbers, event_before = before
        if event_before is not None:
            event_before.synchronize()
        return numbers.tolist()
