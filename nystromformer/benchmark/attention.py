"""`nystromformer benchmark what=attention`: one attention module beside the peers, over lengths."""

from __future__ import annotations

import dataclasses
import gc
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nystromformer.benchmark.contenders import (
    EXACT_ON_GPU,
    FLASH,
    FUSED,
    NEAR,
    OURS,
    PADDED,
    PEERS,
    SCATTERED,
    TRANSFORMERS,
    Contender,
    contenders,
)
from nystromformer.benchmark.lengths import figures_by_length, mechanism_of, ratios_by_length
from nystromformer.benchmark.measure import busy_seconds, in_turn, kept_bytes, peak_of
from nystromformer.errors import UserError
from nystromformer.pictures import legend_below, log_log, picture, style_of
from nystromformer.settings.benchmark import BenchmarkSettings
from nystromformer.tables import Block

SCALING = (2048, 16384)
"""At one sequence each, how much longer the second takes: linear would be 8 times."""
COPIED = 2**30
"""Bytes of the copy that says how fast a GPU's memory is."""
TENSORS_MOVED = 4 + 7
"""The least that must move: Q, K, V read and the output written; then Q, K, V and the output's gradient
read, and three gradients written. What is computed twice to save memory does not change that."""


def measure(settings: BenchmarkSettings, device: torch.device) -> dict[str, Any]:
    """Seconds and bytes of every contender at every length, and what they are compared with.

    Raises:
        UserError: no length fits into memory.
    """
    rows: dict[int, dict[str, dict[str, Any]]] = {}
    for length in settings.lengths:
        print(f"{length} tokens", flush=True)
        try:
            rows[length] = measure_contenders(contenders(settings, length, device), settings.repeats, device)
        except (MemoryError, torch.OutOfMemoryError):
            print(
                f"{length} tokens do not fit into memory and are left out: write a smaller tokens= or "
                "largest_matrix=",
                flush=True,
            )
    if not rows:
        raise UserError("no length fits into memory: write a smaller tokens= or largest_matrix=")
    return {"lengths": rows, "scaling": _scaling(settings, device), "floor": _floor(settings, device)}


def measure_contenders(
    found: Sequence[Contender], repeats: int, device: torch.device
) -> dict[str, dict[str, Any]]:
    """Each contender once to warm up, then all of them in turn, `repeats` times.

    Returns:
        For each the seconds without gradients, those forward and backward, the bytes kept for the backward
        pass beyond the inputs; and on a GPU the allocator's highest point beyond them, and for how many of
        the seconds forward and backward it computes.
    """
    kept = {contender.name: kept_bytes(contender) for contender in found}
    peak = {contender.name: _peak_bytes(contender, device) for contender in found}
    runs: dict[str, Callable[[], object]] = {}
    for contender in found:
        seed = torch.randn_like(contender.run().detach())
        runs[f"{contender.name} forward"] = torch.no_grad()(contender.run)
        runs[f"{contender.name} training"] = partial(contender.train, seed)
    gc.collect()
    seconds = in_turn(runs, repeats, device)
    busy = {
        name: busy_seconds(runs[f"{name} training"], repeats) if device.type == "cuda" else None
        for name in kept
    }
    return {
        name: {
            **{
                f"{what}_{key}": figure
                for what in ("forward", "training")
                for key, figure in (
                    ("seconds", seconds[f"{name} {what}"]),
                    ("median", statistics.median(seconds[f"{name} {what}"])),
                )
            },
            "busy_seconds": busy[name],
            "kept_bytes": kept[name],
            "peak_bytes": peak[name],
        }
        for name in kept
    }


def _peak_bytes(contender: Contender, device: torch.device) -> int | None:
    """Over a forward and a backward pass, after one to warm up; None on a CPU, whose allocator tells none."""
    contender.train()
    return peak_of(contender.train, device) if device.type == "cuda" else None


def _scaling(settings: BenchmarkSettings, device: torch.device) -> dict[str, Any] | None:
    if max(settings.lengths) < SCALING[0]:
        return None  # a quick look at short sequences
    one = dataclasses.replace(settings, tokens=1)
    pair = []
    try:
        for length in SCALING:
            (ours, *_) = contenders(one, length, device)
            pair.append(dataclasses.replace(ours, name=str(length)))
        found = measure_contenders(pair, settings.repeats, device)
    except (MemoryError, torch.OutOfMemoryError):
        return None
    medians = {name: found[name]["training_median"] for name in found}
    short, long = (medians[str(length)] for length in SCALING)
    return {"lengths": list(SCALING), "training_median": medians, "ratio": long / short}


def _floor(settings: BenchmarkSettings, device: torch.device) -> dict[str, Any] | None:
    """How long a forward and backward pass would take if it only moved its tensors; GPUs only."""
    if device.type != "cuda":
        return None
    rate = copy_rate(device)
    seconds = {length: moved_bytes(settings, length) / rate for length in settings.lengths}
    return {"bytes_per_second": rate, "seconds": seconds}


def moved_bytes(settings: BenchmarkSettings, length: int) -> int:
    """Of a forward and backward pass that reads each input and writes each output once."""
    tokens = max(1, settings.tokens // length) * length
    one = tokens * settings.heads * settings.head_dim * getattr(torch, settings.dtype).itemsize
    return TENSORS_MOVED * one


def copy_rate(device: torch.device, size: int = COPIED, repeats: int = 10) -> float:
    """Bytes read and written each second by a large copy within the GPU's memory."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        target.copy_(source)
    stop.record()
    stop.synchronize()
    return 2 * size * repeats / (start.elapsed_time(stop) / 1e3)


def ratios(
    row: dict[str, Any], floor: float | None = None, measured: str = "training_median"
) -> dict[str, float]:
    """What the targets speak of, at one length; below 1 in time means slower than the other.

    Args:
        row: contenders' figures by name.
        floor: seconds that moving the tensors takes, on a GPU.
        measured: which of the times; nothing is told of one that was not measured.
    """
    times = {name: one[measured] for name, one in row.items() if one.get(measured) is not None}
    if OURS not in times:
        return {}
    mine = times[OURS]

    def faster_than(title: str, *names: str) -> dict[str, float]:
        known = [times[name] for name in names if name in times]
        return {f"times faster than {title}": min(known) / mine} if known else {}

    found = faster_than("the fastest Nyström peer", *PEERS) | faster_than("fused exact attention", FUSED)
    if NEAR in times:
        found |= {
            "times the time with exact neighbours": times[NEAR] / mine,
            "times faster than fused exact attention, with exact neighbours": times[FUSED] / times[NEAR],
        }
    if floor is not None:
        found |= faster_than("transformers'", TRANSFORMERS) | faster_than("FlashAttention-2", FLASH)
        found |= faster_than("the fastest exact attention", FUSED, *EXACT_ON_GPU)
        found["times the floor"] = mine / floor
    return {
        **found,
        "time with the last 25 % padding": times[PADDED] / mine,
        "time with scattered 25 % padding": times[SCATTERED] / mine,
    }


def kept_ratios(row: dict[str, Any]) -> dict[str, float]:
    """Of the bytes kept for the backward pass, at one length."""
    kept = {name: one["kept_bytes"] for name, one in row.items()}
    found = {"kept bytes of transformers'": kept[OURS] / kept[TRANSFORMERS]}
    if NEAR in row:
        found["times the kept bytes with exact neighbours"] = kept[NEAR] / kept[OURS]
    return found


def page(result: dict[str, Any]) -> tuple[str, list[Block]]:
    """What was measured, in words, and the tables."""
    settings, rows = result["settings"], result["lengths"]
    about = (
        f"{settings['tokens']} tokens a batch (at least one sequence), {settings['heads']} heads of "
        f"{settings['head_dim']}, {mechanism_of(settings)}, {settings['dtype']}; all in "
        f"turn, medians of {settings['repeats']}. Projections are left out everywhere; exact attention has "
        "no convolution."
    )
    floor = result.get("floor")
    if floor:
        about += (
            " Times are by the clock, with Python and its launches, ahead of which a training of large "
            "batches runs; what the GPU computes is the sum over its kernels, by PyTorch's profiler."
        )
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    figures = (
        ("Forward and backward, ms", "training_median", lambda x: f"{1e3 * x:.1f}"),
        ("Of that the GPU computes, ms", "busy_seconds", lambda x: f"{1e3 * x:.2f}"),
        ("Forward alone, ms", "forward_median", lambda x: f"{1e3 * x:.1f}"),
        ("Kept for the backward pass beyond the inputs, MB", "kept_bytes", lambda x: f"{1e-6 * x:.1f}"),
        ("Peak of the allocator beyond the inputs, MB", "peak_bytes", lambda x: f"{1e-6 * x:.1f}"),
    )
    blocks = figures_by_length(rows, names, figures)
    of_rows = [(row, floor["seconds"][length] if floor else None) for length, row in rows.items()]
    blocks += ratios_by_length(
        "Ratios, forward and backward", rows, [ratios(*each) | kept_ratios(each[0]) for each in of_rows]
    )
    if any(busy := [ratios(*each, "busy_seconds") for each in of_rows]):
        blocks += ratios_by_length("Ratios of what the GPU computes", rows, busy)
    if floor:
        milliseconds = ", ".join(f"{1e3 * floor['seconds'][length]:.2f} at {length}" for length in rows)
        blocks.append(
            f"The floor, ms: {milliseconds}. That is {TENSORS_MOVED} tensors of the inputs' size at "
            f"{floor['bytes_per_second'] / 1e12:.2f} TB/s, the rate of a large copy measured here."
        )
    if result["scaling"]:
        short, long = result["scaling"]["lengths"]
        ratio = result["scaling"]["ratio"]
        blocks.append(f"One sequence of {long} tokens takes {ratio:.2f} times as long as one of {short}.")
    return about, blocks


def draw(result: dict[str, Any], path: Path) -> None:
    """Time over length, both logarithmic; of a GPU for how long it computes."""
    rows = result["lengths"]
    names = dict.fromkeys(name for row in rows.values() for name in row)
    key, whose = ("busy_seconds", " of the GPU") if result["floor"] else ("training_median", "")
    title = f"Attention on {result['machine']['device']}, {result['settings']['dtype']}"
    with picture(path, width="page", height=4.8) as (figure, axes):
        for number, name in enumerate(names):
            lengths = [length for length, row in rows.items() if name in row]
            times = [1e3 * rows[n][name][key] for n in lengths]
            axes.plot(lengths, times, **style_of(number), label=name)
        log_log(axes, list(rows))
        axes.set(
            title=title,
            xlabel=f"tokens of a sequence (a batch has {result['settings']['tokens']})",
            ylabel=f"forward and backward, ms{whose}",
        )
        axes.grid(True, which="both")
        legend_below(figure, axes, columns=3)
