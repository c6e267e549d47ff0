"""A trace of some steps, on request: where the time of a step goes."""

from __future__ import annotations

from pathlib import Path

import torch

FIRST_STEPS = 2
"""Steps before the trace: the first ones compile, choose kernels and fill caches."""
TOP_OPERATIONS = 30


class StepProfiler:
    """Traces `steps` steps after the first few of a session; does nothing when `steps` is 0.

    Leaves `trace.json`, to be opened in Perfetto or chrome://tracing, and `operations.txt`, a table
    of the costliest operations. A session that ends before leaves neither.
    """

    def __init__(self, folder: Path, steps: int, device: torch.device) -> None:
        self._folder = folder
        self._steps = steps
        self._device = device
        self._done = 0
        self._profiler: torch.profiler.profile | None = None

    def step(self) -> bool:
        """To be called after each step; True when the trace has just been written."""
        if not self._steps or self._done > FIRST_STEPS + self._steps:
            return False
        self._done += 1
        if self._done == FIRST_STEPS:
            self._profiler = torch.profiler.profile(activities=self._activities(), record_shapes=True)
            self._profiler.start()
        elif self._done == FIRST_STEPS + self._steps and self._profiler:
            self._profiler.stop()
            self._write(self._profiler)
            self._profiler = None
            return True
        return False

    def close(self) -> None:
        """Stop a trace that is under way."""
        if self._profiler:
            self._profiler.stop()
            self._profiler = None

    def _activities(self) -> list[torch.profiler.ProfilerActivity]:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self._device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        return activities

    def _write(self, profiler: torch.profiler.profile) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(self._folder / "trace.json"))
        order = f"self_{self._device.type if self._device.type == 'cuda' else 'cpu'}_time_total"
        table = profiler.key_averages().table(sort_by=order, row_limit=TOP_OPERATIONS)
        (self._folder / "operations.txt").write_text(table, encoding="utf-8")
