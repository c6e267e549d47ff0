"""Time of a run: how long it trained over all its sessions, how long its steps took and its data, and a trace
of where the time of a step goes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from nystromformer.training.checkpoint import Progress
from nystromformer.training.phases import Plan

T = TypeVar("T")

TOP_OPERATIONS = 30
"""Rows of the table beside a trace."""


@dataclass(frozen=True)
class Lap:
    """Training time since the last lap, seconds."""

    seconds: float
    waited: float
    """Of these, how long the loop waited for the loader."""


class Clock:
    """Keeps `progress.seconds`, and the laps that tokens per second are taken from."""

    def __init__(self, progress: Progress, max_minutes: float | None) -> None:
        self._progress = progress
        self._limit = None if max_minutes is None else 60 * max_minutes
        now = time.perf_counter()
        self._began = now - progress.seconds
        self._lap_began = now
        self._waited = 0.0

    def now(self) -> float:
        """Seconds since the first step, by this process."""
        return time.perf_counter() - self._began

    def tick(self, seconds: float) -> None:
        """Note the time of a step; all processes take the main one's, so that they end together."""
        self._progress.seconds = max(seconds, self._progress.seconds)

    def spent(self) -> float:
        """Share of the time limit that is over; 0 without a limit."""
        return 0.0 if self._limit is None else min(self._progress.seconds / self._limit, 1.0)

    def at_most(self, seconds: float) -> float:
        """An expected time, cut to what the limit leaves."""
        return seconds if self._limit is None else max(min(seconds, self._limit - self._progress.seconds), 0)

    def waiting(self, items: Iterable[T]) -> Iterator[T]:
        """The same items, with the time that each let the loop wait."""
        iterator = iter(items)
        while True:
            before = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self._waited += time.perf_counter() - before
            yield item

    def lap(self) -> Lap:
        """The time since the last call."""
        now = time.perf_counter()
        lap = Lap(now - self._lap_began, self._waited)
        self._lap_began, self._waited = now, 0.0
        return lap

    @contextlib.contextmanager
    def outside_laps(self) -> Iterator[None]:
        """For what is no training: a validation, a checkpoint."""
        before = time.perf_counter()
        yield
        self._lap_began += time.perf_counter() - before


class Forecast:
    """What a run with a time limit is in for on this machine, from the first steps of a session."""

    LEAST_SECONDS = 10.0
    LEAST_STEPS = 3

    def __init__(self, progress: Progress, plan: Plan, max_minutes: float | None) -> None:
        self._progress = progress
        self._plan = plan
        self._minutes = max_minutes
        self._told = max_minutes is None
        self._first: tuple[int, float] | None = None

    def told(self) -> str | None:
        """To be asked after every step: one line, once, as soon as steps have been measured long enough."""
        if self._told or self._minutes is None:
            return None
        step, seconds = self._progress.step, self._progress.seconds
        if self._first is None:  # what the first step makes once is no part of the others
            self._first = (step, seconds)
        steps, took = step - self._first[0], seconds - self._first[1]
        if steps < self.LEAST_STEPS or took < self.LEAST_SECONDS:
            return None
        self._told = True
        done, all_steps = self._plan.work(step), self._plan.steps
        each = took / (done - self._plan.work(self._first[0]))  # seconds a token
        reached = self._plan.reached_by(done + (60 * self._minutes - seconds) / each)
        if reached < all_steps:
            return (
                f"this machine makes about {reached:,.0f} of the {all_steps:,} steps in the "
                f"{self._minutes:g} minutes allowed; the rate falls to zero over those"
            )
        minutes = max(round((seconds + (self._plan.work(all_steps) - done) * each) / 60), 1)
        unit = "minute" if minutes == 1 else "minutes"
        return f"this machine needs about {minutes:,} {unit} for the {all_steps:,} steps"


def step_profiler(
    folder: Path, steps: int, device: torch.device, say: Callable[[str], None]
) -> AbstractContextManager[profile | None]:
    """Traces `steps` steps of a session from the third on; None when `steps` is 0.

    The first ones compile, choose kernels and fill caches. Leaves `trace.json`, to be opened in Perfetto or
    chrome://tracing, and `operations.txt`, a table of the costliest operations.
    """
    if not steps:
        return nullcontext()
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)

    def write(traced: profile) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        traced.export_chrome_trace(str(folder / "trace.json"))
        order = f"self_{'cuda' if device.type == 'cuda' else 'cpu'}_time_total"
        table = traced.key_averages().table(sort_by=order, row_limit=TOP_OPERATIONS)
        (folder / "operations.txt").write_text(table, encoding="utf-8")
        say(f"profile of {steps} steps in {folder}")

    plan = schedule(wait=1, warmup=1, active=steps, repeat=1)
    return profile(activities=activities, schedule=plan, on_trace_ready=write, record_shapes=True)
