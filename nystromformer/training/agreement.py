"""Small numbers that all processes must agree on, without waiting for the device in every step."""

from __future__ import annotations

import torch
from accelerate import Accelerator

from nystromformer.training.devices import numbers_on


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
