"""Bytes of tensors alive at the highest point of a computation, on a CPU and on a GPU."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's library prints a line at each start and stop

CPU_METHOD = (
    "every allocation and release of PyTorch's CPU allocator, workspace of its operators included, by the "
    "profiler"
)
GPU_METHOD = "the highest point of PyTorch's allocator, above what is held before the call"


def peak_of(run: Callable[[], object], device: torch.device) -> int:
    """Bytes allocated during the call and alive together at most; what was there before is not counted.

    The result of the call counts. Memory that is not asked of PyTorch's allocator is not seen.
    """
    return _peak_on_gpu(run) if device.type == "cuda" else _peak_on_cpu(run)


def _peak_on_cpu(run: Callable[[], object]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        result = run()
    del result
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()  # negative where memory is released
        peak = max(peak, live)
    return peak


def _peak_on_gpu(run: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = run()
    torch.cuda.synchronize()
    del result
    return torch.cuda.max_memory_allocated() - before
