"""Time of a run: how long it trained over all its sessions, and how long the last steps took."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch
from accelerate import Accelerator

from nystromformer.training.checkpoint import Progress


class Clock:
    """Keeps `progress.seconds`, and the laps that tokens per second are taken from."""

    def __init__(self, progress: Progress, accelerator: Accelerator, max_minutes: float | None) -> None:
        self._progress = progress
        self._accelerator = accelerator
        self._limit = None if max_minutes is None else 60 * max_minutes
        now = time.perf_counter()
        self._began = now - progress.seconds
        self._lap_began = now

    def tick(self) -> None:
        """Note the time of a step. Under a time limit all processes take the main one's."""
        self._progress.seconds = time.perf_counter() - self._began
        if self._limit is not None and self._accelerator.num_processes > 1:
            mine = self._progress.seconds if self._accelerator.is_main_process else 0.0
            seconds = torch.tensor(mine, device=self._accelerator.device)
            self._progress.seconds = float(self._accelerator.reduce(seconds, "sum"))

    def spent(self) -> float:
        """Share of the time limit that is over; 0 without a limit."""
        return 0.0 if self._limit is None else min(self._progress.seconds / self._limit, 1.0)

    def at_most(self, seconds: float) -> float:
        """An expected time, cut to what the limit leaves."""
        return seconds if self._limit is None else max(min(seconds, self._limit - self._progress.seconds), 0)

    def lap(self) -> float:
        """Seconds of training since the last call."""
        now = time.perf_counter()
        elapsed, self._lap_began = now - self._lap_began, now
        return elapsed

    @contextlib.contextmanager
    def outside_laps(self) -> Iterator[None]:
        """For what is no training: a validation, a checkpoint."""
        before = time.perf_counter()
        yield
        self._lap_began += time.perf_counter() - before
