"""SIGTERM, SIGINT and SIGUSR1: finish the step, write a checkpoint, leave."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType, TracebackType

import torch
from accelerate import Accelerator

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """A context manager that notes the first signal and lets a second one stop at once.

    The exit code is 128 + the signal's number, as a shell reports it: 143 for SIGTERM, 130 for
    SIGINT (Ctrl-C), 138 for SIGUSR1 on Linux.
    """

    def __init__(self) -> None:
        self._signal = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal:
            os._exit(128 + number)
        self._signal = number

    def requested(self, accelerator: Accelerator) -> bool:
        """Whether any process was signalled; every process gets the same answer."""
        if accelerator.num_processes > 1:
            flag = torch.tensor(float(self._signal), device=accelerator.device)
            # A sum, since Accelerate reduces by no maximum: processes that were signalled got the same.
            total = accelerator.reduce(flag, "sum").item()
            self._signal = self._signal or int(total)
        return self._signal != 0

    def exit(self) -> None:
        """Leave the program with the signal's exit code."""
        known = self._signal if self._signal in tuple(map(int, SIGNALS)) else signal.SIGTERM
        sys.exit(128 + known)
