"""What computes a run: the parts that the last bits of its numbers depend on, and no setting names."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.metadata import version

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from nystromformer.attention import build
from nystromformer.attention.nystrom import computed_by
from nystromformer.model import NystromformerConfig
from nystromformer.training.checkpoint import Progress

Computation = dict[str, str]
"""Each part and what it is, as messages name them."""


def computation_of(config: NystromformerConfig, device: torch.device, dtype: torch.dtype) -> Computation:
    """What this process computes such a model with.

    Args:
        dtype: the number format of the products.
    """
    found = {
        "attention": attention_of(config, device, dtype),
        "products": str(dtype).removeprefix("torch."),
        "torch": version("torch"),
    }
    if device.type == "cuda":
        found["device"] = f"{torch.cuda.get_device_name(device)}, {torch.version.cuda or torch.version.hip}"
    elif device.type == "cpu":
        found["device"] = f"{build.cpu_name()}, {torch.backends.cpu.get_cpu_capability()}"
        found["oneDNN"] = _one_dnn()
        found["threads"] = str(torch.get_num_threads())  # sums are cut by them
    else:
        found["device"] = device.type
    return found


def attention_of(config: NystromformerConfig, device: torch.device, dtype: torch.dtype) -> str:
    """The mechanism where it is PyTorch's operators alone, else which implementation of it."""
    if config.attention != "nystrom":
        return config.attention
    width = config.hidden_size // config.num_attention_heads
    query_BHND = torch.empty(1, 1, config.max_position_embeddings, width, device=device, dtype=dtype)
    return computed_by(
        query_BHND,
        config.num_landmarks,
        config.pinv_iterations,
        config.landmarks,
        neighbours=config.neighbours,
        salient_tokens=config.salient_tokens,
    )


def note_computation(
    progress: Progress,
    config: NystromformerConfig,
    accelerator: Accelerator,
    dtype: torch.dtype,
    say: Callable[[str], None],
) -> None:
    """Write into the run's state what computes it; say where that changed, or differs among processes.

    All processes call it, before the next step; `say` is called on the main one alone.
    """
    every = gather_object([computation_of(config, accelerator.device, dtype)])
    main = every[0]
    if accelerator.is_main_process:
        changed = _differences(progress.computation, main)
        if progress.step and changed:
            told = ", ".join(f"{part} {now} (before: {then})" for part, then, now in changed)
            say(f"from step {progress.step} on computed with {told}: equal within rounding, not bit for bit")
        for line in _odd_processes(every):
            say(line)
    progress.computation = main


def _odd_processes(every: list[Computation]) -> list[str]:
    """A line on the processes that differ from the first in the same way."""
    odd: dict[str, list[int]] = {}
    for rank, theirs in enumerate(every):
        if differences := _differences(every[0], theirs):
            told = ", ".join(f"{part} {now} (process 0: {then})" for part, then, now in differences)
            odd.setdefault(told, []).append(rank)
    lines = []
    for told, ranks in odd.items():
        numbers = ", ".join(map(str, ranks))
        who, whose = (
            (f"process {numbers} of {len(every)} computes", "its")
            if len(ranks) == 1
            else (f"processes {numbers} of {len(every)} compute", "their")
        )
        lines.append(f"{who} with {told}: {whose} numbers are equal within rounding, not bit for bit")
    return lines


def _differences(before: Computation, now: Computation) -> list[tuple[str, str, str]]:
    """(part, before, now) of what both tell and tell differently."""
    return [(part, before[part], now[part]) for part in now if before.get(part, now[part]) != now[part]]


def _one_dnn() -> str:
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return "off"
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA")
    return f"up to {limit}" if limit else "on"
