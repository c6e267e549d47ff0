"""How PyTorch's threads wait for each other: they spin while the cores are theirs, and sleep where not.

GCC's OpenMP, on which PyTorch computes on Linux, lets a thread that waits spin for milliseconds. On an idle
machine that is the fastest way, by a tenth for the many short operations of a small model. Where another
process has taken one of two cores, the spinning keeps the thread that is waited for off the other core, and
a training makes a fraction of its steps. How long threads spin is fixed when the library is loaded, except
that it hardly spins while "there are more OpenMP threads than available CPUs" (libgomp's manual,
GOMP_SPINCOUNT). So where this process's threads wait for cores, a few more are started, which do nothing.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

CHOSEN_BY_THE_USER = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
CROWDED = 0.1
"""Seconds that the process's threads wait for a core, per second, from which on others want the cores."""
CALM = 0.02
"""The same, below which nobody does."""
CALM_READINGS = 20
"""How many calm readings in a row it takes to spin again."""
INTERVAL = 0.5
"""Seconds between readings."""

_watching = threading.Lock()


def watch_for_other_work(environment: Mapping[str, str] = os.environ) -> None:
    """Have this process's waiting threads sleep whenever others want the cores; once a process is enough.

    Without effect where the user has set how threads wait, and where the system does not tell how long
    they wait for cores. No result depends on it.
    """
    chosen = any(name in environment for name in CHOSEN_BY_THE_USER)
    if chosen or not Path("/proc/self/task").is_dir() or not _watching.acquire(blocking=False):
        return
    threading.Thread(target=_watch, name="watch for other work", daemon=True).start()


def _watch() -> None:
    pressure, decision, idle = CorePressure(), Decision(), IdleThreads()
    while True:
        time.sleep(INTERVAL)
        share = pressure.read()
        if "torch" in sys.modules:
            idle.have(decision.crowded(share))


class CorePressure:
    """How long the threads of this process were ready to run and had no core."""

    def __init__(self) -> None:
        self._waited: dict[str, int] = {}
        self._at = time.monotonic()
        self.read()

    def read(self) -> float:
        """Seconds per second since the last reading, summed over the threads."""
        before, began = self._waited, self._at
        self._waited, self._at = {}, time.monotonic()
        for thread in os.listdir("/proc/self/task"):
            try:
                nanoseconds = Path(f"/proc/self/task/{thread}/schedstat").read_text().split()[1]
            except (OSError, IndexError):  # it has ended, or the kernel does not count
                continue
            self._waited[thread] = int(nanoseconds)
        more = sum(now - before[thread] for thread, now in self._waited.items() if thread in before)
        return more / 1e9 / max(self._at - began, 1e-9)


class Decision:
    """Whether others want the cores: yes at one crowded reading, no after many calm ones."""

    def __init__(self) -> None:
        self._crowded = False
        self._calm = 0

    def crowded(self, share: float) -> bool:
        self._calm = self._calm + 1 if share < CALM else 0
        self._crowded = share > CROWDED or (self._crowded and self._calm < CALM_READINGS)
        return self._crowded


class IdleThreads:
    """OpenMP threads that only exist, so that there are more than CPUs."""

    def __init__(self) -> None:
        self._leave: threading.Event | None = None

    def have(self, wanted: bool) -> None:
        """Start them, or let them go; nothing where it is so already or threads do not wait at all."""
        if wanted == (self._leave is not None):
            return
        if self._leave is not None:
            self._leave.set()
            self._leave = None
            return
        import torch  # begun by another thread: waits until that is through

        threads = torch.get_num_threads()
        if threads == 1:
            return
        self._leave = threading.Event()
        for _ in range(len(os.sched_getaffinity(0)) // threads):
            # Each Python thread that computes has its own team of OpenMP threads, as many as the main one's.
            threading.Thread(target=_stay, args=(self._leave,), name="idle OpenMP", daemon=True).start()


def _stay(leave: threading.Event) -> None:
    import torch

    torch.empty(1 << 17).fill_(0)  # large enough to be shared out, which makes the team
    leave.wait()
