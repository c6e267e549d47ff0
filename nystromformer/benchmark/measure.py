"""How it is measured: contenders in turn, medians of wall-clock time, bytes kept for the backward pass."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from nystromformer.benchmark.contenders import Contender


@dataclass(frozen=True)
class Timing:
    """Seconds of repeated runs."""

    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Measurement:
    """One contender at one length."""

    forward: Timing
    """Without gradients."""
    training: Timing
    """Forward and backward."""
    kept: int
    """Bytes kept for the backward pass beyond the inputs."""
    peak: int | None
    """Bytes at the allocator's highest point beyond the inputs, forward and backward; GPUs only."""


def measure(contenders: Sequence[Contender], repeats: int, device: torch.device) -> dict[str, Measurement]:
    """Each contender once to warm up, then all of them in turn, `repeats` times."""
    kept = {contender.name: kept_bytes(contender) for contender in contenders}
    peak = {contender.name: peak_bytes(contender, device) for contender in contenders}
    forward: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    training: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    seeds = {contender.name: torch.randn_like(contender.run().detach()) for contender in contenders}
    gc.collect()
    for _ in range(repeats):
        for contender in contenders:
            with torch.no_grad():
                forward[contender.name].append(seconds_of(contender.run, device))
            training[contender.name].append(
                seconds_of(partial(_train, contender, seeds[contender.name]), device)
            )
    return {
        name: Measurement(Timing(forward[name]), Timing(training[name]), kept[name], peak[name])
        for name in kept
    }


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


def peak_bytes(contender: Contender, device: torch.device) -> int | None:
    """The allocator's highest point over a forward and a backward pass; None on a CPU, which has none."""
    _train(contender, None)
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    _train(contender, None)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _train(contender: Contender, seed: Tensor | None) -> None:
    out = contender.run()
    torch.autograd.grad(out, contender.leaves, torch.ones_like(out) if seed is None else seed)


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """Wall-clock time of one call, with what it left to the GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
