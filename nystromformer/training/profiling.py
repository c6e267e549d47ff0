"""A trace of some steps, on request: where the time of a step goes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

TOP_OPERATIONS = 30


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
