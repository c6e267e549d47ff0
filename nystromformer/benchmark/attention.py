"""`nystromformer benchmark what=attention`: one attention module beside the peers, over lengths."""

from __future__ import annotations

import dataclasses
import time
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
    contenders,
)
from nystromformer.benchmark.measure import Measurement, measure
from nystromformer.benchmark.results import described, results_folder, write_results
from nystromformer.errors import UserError
from nystromformer.machine import device_of, machine
from nystromformer.settings.benchmark import BenchmarkSettings
from nystromformer.tables import table

SCALING = (2048, 16384)
"""At one sequence each, how much longer the second takes: linear would be 8 times."""
COPIED = 2**30
"""Bytes of the copy that says how fast a GPU's memory is."""
TENSORS_MOVED = 4 + 7
"""The least that must move: Q, K, V read and the output written; then Q, K, V and the output's gradient
read, and three gradients written. What is computed twice to save memory does not change that."""


def benchmark_attention(settings: BenchmarkSettings) -> dict[str, Any]:
    """Measure every contender at every length; print the table and write it to the folder.

    Returns:
        What the JSON file holds: seconds, bytes and ratios by length and contender.

    Raises:
        UserError: the device is missing, the folder cannot be written, or memory runs out.
    """
    device, folder = device_of(settings.device), results_folder(settings.folder)
    started, here = time.perf_counter(), machine(device)  # the commit before anything changes
    rows: dict[int, dict[str, Measurement]] = {}
    for length in settings.lengths:
        print(f"{length} tokens", flush=True)
        try:
            rows[length] = measure(contenders(settings, length, device), settings.repeats, device)
        except (MemoryError, torch.OutOfMemoryError):
            print(
                f"{length} tokens do not fit into memory and are left out: write a smaller tokens= or "
                "largest_matrix=",
                flush=True,
            )
    if not rows:
        raise UserError("no length fits into memory: write a smaller tokens= or largest_matrix=")
    result = {
        "machine": here,
        "settings": described(settings),
        "lengths": {length: _as_json(rows[length]) for length in rows},
        "scaling": _scaling(settings, device),
        "floor": _floor(settings, device),
        "seconds": time.perf_counter() - started,
    }
    write_results(folder / f"attention_{device.type}", result, as_markdown(result), plot)
    return result


def _as_json(row: dict[str, Measurement]) -> dict[str, Any]:
    return {
        name: {
            "forward_seconds": found.forward.seconds,
            "forward_median": found.forward.median,
            "training_seconds": found.training.seconds,
            "training_median": found.training.median,
            "kept_bytes": found.kept,
            "peak_bytes": found.peak,
        }
        for name, found in row.items()
    }


def _scaling(settings: BenchmarkSettings, device: torch.device) -> dict[str, Any] | None:
    if max(settings.lengths) < SCALING[0]:
        return None  # a quick look at short sequences
    one = dataclasses.replace(settings, tokens=1)
    pair = []
    try:
        for length in SCALING:
            (ours, *_) = contenders(one, length, device)
            pair.append(dataclasses.replace(ours, name=str(length)))
        found = measure(pair, settings.repeats, device)
    except (MemoryError, torch.OutOfMemoryError):
        return None
    medians = {name: found[name].training.median for name in found}
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


def ratios(row: dict[str, Any], floor: float | None = None) -> dict[str, float]:
    """What the targets speak of, at one length; below 1 in time means slower than the other.

    Args:
        row: contenders' figures by name.
        floor: seconds that moving the tensors takes, on a GPU.
    """
    ours = row[OURS]
    peer = min(row[name]["training_median"] for name in PEERS if name in row)
    mine = ours["training_median"]
    on_gpu = {}
    if floor is not None:
        exact = min(row[name]["training_median"] for name in (FUSED, *EXACT_ON_GPU) if name in row)
        on_gpu["times faster than transformers'"] = row[TRANSFORMERS]["training_median"] / mine
        if FLASH in row:
            on_gpu["times faster than FlashAttention-2"] = row[FLASH]["training_median"] / mine
        on_gpu["times faster than the fastest exact attention"] = exact / mine
        on_gpu["times the floor"] = mine / floor
    near = {}
    if NEAR in row:
        slower = row[NEAR]["training_median"]
        near["times the time with exact neighbours"] = slower / mine
        near["times faster than fused exact attention, with exact neighbours"] = (
            row[FUSED]["training_median"] / slower
        )
        near["times the kept bytes with exact neighbours"] = row[NEAR]["kept_bytes"] / ours["kept_bytes"]
    return {
        "times faster than the fastest Nyström peer": peer / mine,
        "times faster than fused exact attention": row[FUSED]["training_median"] / mine,
        **near,
        **on_gpu,
        "kept bytes of transformers'": ours["kept_bytes"] / row[TRANSFORMERS]["kept_bytes"],
        "time with the last 25 % padding": row[PADDED]["training_median"] / ours["training_median"],
        "time with scattered 25 % padding": row[SCATTERED]["training_median"] / ours["training_median"],
    }


def as_markdown(result: dict[str, Any]) -> str:
    """The page of results."""
    settings, rows = result["settings"], result["lengths"]
    kernel = f"kernel {settings['kernel']}" if settings["kernel"] else "no convolution"
    if settings.get("neighbours"):
        kernel += f", blocks of {settings['neighbours']} for exact neighbours"
        if settings.get("salient_tokens", 1) > 1:
            kernel += f" and {settings['salient_tokens']} salient tokens"
    lines = [
        f"# Attention on {result['machine']['device']}",
        "",
        f"Measured by `nystromformer benchmark what=attention` in {result['seconds'] / 60:.1f} minutes: "
        f"{settings['tokens']} tokens a batch (at least one sequence), {settings['heads']} heads of "
        f"{settings['head_dim']}, {settings['landmarks']} landmarks, {kernel}, {settings['dtype']}; all in "
        f"turn, medians of {settings['repeats']}. Projections are left out everywhere; exact attention has "
        "no convolution.",
        "",
        *(f"- {name}: {value}" for name, value in result["machine"].items()),
    ]
    for title, key, scale in (
        ("Forward and backward, ms", "training_median", 1e3),
        ("Forward alone, ms", "forward_median", 1e3),
        ("Kept for the backward pass beyond the inputs, MB", "kept_bytes", 1e-6),
        ("Peak of the allocator beyond the inputs, MB", "peak_bytes", 1e-6),
    ):
        names = list(dict.fromkeys(name for row in rows.values() for name in row))
        cells = {name: [row.get(name, {}).get(key) for row in rows.values()] for name in names}
        if all(cell is None for row in cells.values() for cell in row):
            continue
        shown = {name: ["–" if x is None else f"{x * scale:.1f}" for x in row] for name, row in cells.items()}
        lines += ["", f"## {title}", "", *_by_length(rows, shown)]
    floor = result.get("floor")
    named = [ratios(row, floor["seconds"][length] if floor else None) for length, row in rows.items()]
    shown = {name: [f"{row[name]:.2f}" if name in row else "–" for row in named] for name in named[0]}
    lines += ["", "## Ratios, forward and backward", "", *_by_length(rows, shown)]
    if floor:
        milliseconds = ", ".join(f"{1e3 * floor['seconds'][length]:.2f} at {length}" for length in rows)
        lines += [
            "",
            f"The floor, ms: {milliseconds}. That is {TENSORS_MOVED} tensors of the inputs' size at "
            f"{floor['bytes_per_second'] / 1e12:.2f} TB/s, the rate of a large copy measured here.",
        ]
    if result["scaling"]:
        short, long = result["scaling"]["lengths"]
        ratio = result["scaling"]["ratio"]
        lines += ["", f"One sequence of {long} tokens takes {ratio:.2f} times as long as one of {short}."]
    return "\n".join(lines) + "\n"


def _by_length(rows: dict[Any, Any], shown: dict[str, list[str]]) -> list[str]:
    return table(["", *rows], [[name, *cells] for name, cells in shown.items()])


def plot(result: dict[str, Any], file: Path) -> None:
    """Time over length, both logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    rows = result["lengths"]
    for name in dict.fromkeys(name for row in rows.values() for name in row):
        lengths = [length for length, row in rows.items() if name in row]
        axes.plot(lengths, [1e3 * rows[n][name]["training_median"] for n in lengths], "o-", label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(list(rows), [str(length) for length in rows])
    axes.set_xlabel(f"tokens of a sequence (a batch has {result['settings']['tokens']})")
    axes.set_ylabel("forward and backward, ms")
    axes.set_title(f"Attention on {result['machine']['device']}, {result['settings']['dtype']}")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=120)
