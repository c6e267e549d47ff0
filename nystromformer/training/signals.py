"""SIGTERM, SIGINT and SIGUSR1: finish the step, write a checkpoint, leave."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType, TracebackType

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

    def votes(self) -> list[float]:
        """For each of SIGNALS, 1 where this process got it; to be summed over the processes."""
        return [float(self._signal == number) for number in SIGNALS]

    def decide(self, votes: list[float]) -> bool:
        """Whether any process was signalled, by the votes of all; the same answer for everyone."""
        sent = [number for number, count in zip(SIGNALS, votes, strict=True) if count]
        if sent:
            self._signal = sent[0]
        return bool(sent)

    def exit(self) -> None:
        """Leave the program with the signal's exit code."""
        sys.exit(128 + self._signal)
