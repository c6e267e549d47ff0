"""How it is measured: all in turn, wall-clock time, bytes alive and bytes kept for the backward pass."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from nystromformer.benchmark.contenders import Contender

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's library prints a line at each start and stop

CPU_METHOD = (
    "every allocation and release of PyTorch's CPU allocator, workspace of its operators included, by the "
    "profiler"
)
GPU_METHOD = "the highest point of PyTorch's allocator, above what is held before the call"
SECONDS_BETWEEN = 0.1


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """Wall-clock time of one call, with what it left to the GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def busy_seconds(run: Callable[[], object], calls: int) -> float:
    """What a GPU computes for one call, without the time in which it waits for the CPU."""
    return sum(seconds for seconds, _, _ in gpu_kernels(run, calls))


def gpu_kernels(run: Callable[[], object], calls: int) -> list[tuple[float, float, str]]:
    """(seconds, launches, name) of each kernel of one call, the mean over several after one to warm up; the
    costliest first."""
    run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(calls):
            run()
        torch.cuda.synchronize()
    found = [
        (event.self_device_time_total / 1e6 / calls, event.count / calls, event.key)
        for event in profiled.key_averages()
        if event.device_type == DeviceType.CUDA and event.self_device_time_total > 0
    ]
    return sorted(found, reverse=True)


def in_turn(
    runs: Mapping[str, Callable[[], object]],
    repeats: int,
    device: torch.device,
    *,
    patience: float = float("inf"),
) -> dict[str, list[float]]:
    """Seconds of each run, all in turn, `repeats` times.

    Args:
        patience: seconds that a run may take in all; it is not timed again where the next time would exceed
            them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            before = seconds[name]
            if not before or sum(before) + before[-1] <= patience:
                before.append(seconds_of(run, device))
    return seconds


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


def kept_bytes(contender: Contender) -> int:
    """What autograd's saved tensors hold, each memory once, without that of the inputs."""
    held: dict[int, Tensor] = {}  # keeps them alive, so that no address is used twice

    def note(x: Tensor) -> Tensor:
        held[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        out = contender.run()
    total = sum(
        x.untyped_storage().nbytes() for pointer, x in held.items() if pointer not in contender.inputs
    )
    del out
    return total


def fresh_process(
    initializer: Callable[..., object] | None = None, initargs: tuple[Any, ...] = ()
) -> ProcessPoolExecutor:
    """A process without what an earlier measurement left, spawned as a training's are."""
    spawned = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, spawned, initializer, initargs)


class PeakMemory:
    """Samples a process and all that it starts while the block runs; `bytes` is the highest sum.

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

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._done.is_set():
            self.bytes = max(self.bytes, _bytes_of_tree(self._process))
            self._done.wait(SECONDS_BETWEEN)


def _bytes_of_tree(process: psutil.Process) -> int:
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
