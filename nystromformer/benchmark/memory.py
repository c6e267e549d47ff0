"""Peak memory of a process and all that it starts, seen from outside."""

from __future__ import annotations

import threading
from types import TracebackType

import psutil

SECONDS_BETWEEN = 0.1


class PeakMemory:
    """Samples a process tree while the block runs; `bytes` is the highest sum.

    Memory that processes share is counted once where the system tells (PSS, on Linux); elsewhere each
    counts it (RSS). What lives shorter than a tenth of a second can be missed.
    """

    def __init__(self, process: int) -> None:
        self._process = psutil.Process(process)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.bytes = 0

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._done.is_set():
            self.bytes = max(self.bytes, tree_bytes(self._process))
            self._done.wait(SECONDS_BETWEEN)


def tree_bytes(process: psutil.Process) -> int:
    """Bytes that a process and its descendants hold now; 0 where it has ended."""
    try:
        tree = [process, *process.children(recursive=True)]
    except psutil.Error:
        return 0
    total = 0
    for one in tree:
        try:
            memory = one.memory_full_info()
        except psutil.Error:  # it has just ended
            continue
        total += getattr(memory, "pss", 0) or memory.rss
    return total
