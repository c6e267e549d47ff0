"""The paper's efficiency table: time and memory of one self-attention module on one sequence.

Shapes: B rows (1), H heads, N positions, D head width, E = H · D.

The module is the model's own: projections of the hidden states to queries, keys and values, and the
mechanism, for Nyströmformer with its residual convolution. The output projection is not part of it.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from nystromformer.attention.mechanism import Mechanism
from nystromformer.benchmark.contenders import Contender, stored_attention
from nystromformer.benchmark.measure import CPU_METHOD, GPU_METHOD, in_turn, peak_of
from nystromformer.machine import device_of
from nystromformer.model import NystromformerConfig
from nystromformer.model.attention import NystromformerSelfAttention
from nystromformer.pictures import STYLES, legend_below, log_log, picture
from nystromformer.results import Result
from nystromformer.settings.reproduce import ReproduceSettings
from nystromformer.settings.scale import EfficiencyScale
from nystromformer.tables import Block, table

STORED = "Transformer"
FUSED = "exact, fused"
OURS = "Nyströmformer-64"
ROWS: Mapping[str, dict[str, Any]] = {
    STORED: {"attention": "softmax"},
    FUSED: {"attention": "softmax"},
    "Linformer-256": {"attention": "linformer", "linformer_projected": 256},
    "Longformer-257": {"attention": "longformer", "longformer_window": 257},
    "Performer-256": {"attention": "performer", "performer_features": 256},
    OURS: {"attention": "nystrom", "num_landmarks": 64},
    "Nyströmformer-32": {"attention": "nystrom", "num_landmarks": 32},
}
PUBLISHED_LENGTHS = (512, 1024, 2048, 4096, 8192)
PUBLISHED: Mapping[str, tuple[tuple[float, float], ...]] = {
    STORED: ((54, 0.8), (186, 2.4), (685, 10.0), (2620, 32.9), (10233, 155.4)),
    "Linformer-256": ((41, 0.7), (81, 1.3), (165, 2.7), (366, 5.3), (635, 11.3)),
    "Longformer-257": ((32.2, 2.4), (65, 4.6), (130, 9.2), (263, 18.5), (455, 36.2)),
    OURS: ((35, 0.7), (63, 1.3), (118, 2.7), (229, 5.9), (450, 12.3)),
    "Nyströmformer-32": ((26, 0.6), (49, 1.2), (96, 2.6), (193, 5.6), (383, 11.5)),
}
"""The paper's table: MB and ms of inference on a GTX 1080Ti at each of PUBLISHED_LENGTHS."""
MODES = ("inference", "training")
STORED_COPIES = {"inference": 2, "training": 4}
"""n × n matrices a head that the stored form holds at its highest point."""


class StoredAttention(Mechanism):
    """Exact attention that stores its matrices, of rows without padding."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, key_padding_mask: Tensor | None = None
    ) -> Tensor:
        assert key_padding_mask is None
        return stored_attention(query, key, value)


def efficiency(settings: ReproduceSettings) -> Result:
    """Measure every row at every length, inference and training."""
    scale, device = settings.scale.efficiency, device_of(settings.device)
    lengths = {}
    for length in scale.lengths:
        print(f"{length} tokens", flush=True)
        lengths[str(length)] = measure_rows(scale, length, device)
    ratios = ratios_of(lengths)
    measured = {
        "lengths": lengths,
        "transformer_over_row": ratios,
        "published_transformer_over_row": published_ratios(),
        "memory_method": GPU_METHOD if device.type == "cuda" else CPU_METHOD,
    }
    longest = max(lengths, key=int)
    ours = ratios["inference"][OURS][longest]
    return Result(
        title="Efficiency of one attention module",
        measured=measured,
        blocks=_blocks(measured, scale),
        headline=f"At {longest} tokens the Transformer takes {_times(ours['seconds'])} the time and "
        f"{_times(ours['bytes'])} the memory of Nyströmformer-64, inference",
        plots={"efficiency": _draw},
    )


def contender(name: str, scale: EfficiencyScale, length: int, device: torch.device) -> Contender:
    """One row of the table: the module on a random sequence; the same numbers for all rows."""
    choices = {"conv_kernel_size": None, **ROWS[name]}
    if choices["attention"] == "nystrom":
        choices["conv_kernel_size"] = scale.kernel
    config = NystromformerConfig(
        hidden_size=scale.heads * scale.head_dim,
        num_attention_heads=scale.heads,
        max_position_embeddings=length,
        attention_probs_dropout_prob=0.0,
        **choices,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = NystromformerSelfAttention(config)
        hidden_BNE = torch.randn(1, length, config.hidden_size)
    if name == STORED:
        module.add_module(module.mechanism, StoredAttention())
    dtype = getattr(torch, scale.dtype)
    module = module.to(device, dtype)
    hidden_BNE = hidden_BNE.to(device, dtype).requires_grad_()
    leaves: list[Tensor] = [hidden_BNE, *module.parameters()]
    return Contender(name, leaves, lambda: module(hidden_BNE, None, None))


def measure_rows(scale: EfficiencyScale, length: int, device: torch.device) -> dict[str, Any]:
    """Seconds and bytes of each row that fits: once to warm up, which measures memory, then in turn."""
    found: dict[str, Any] = {name: dict.fromkeys(MODES) for name in ROWS}
    for mode in MODES:
        runs: dict[str, Callable[[], object]] = {}
        for name in ROWS:
            if name == STORED and _needed(scale, length, mode) > _free(device):
                continue
            measured = contender(name, scale, length, device)
            run = torch.no_grad()(measured.run) if mode == "inference" else measured.train
            with suppress(MemoryError, torch.OutOfMemoryError):
                found[name][mode] = {"bytes": peak_of(run, device)}
                runs[name] = run
        gc.collect()
        for name, seconds in in_turn(runs, scale.repeats, device, patience=scale.patience).items():
            found[name][mode] |= {"seconds": seconds, "median": statistics.median(seconds)}
    return found


def _needed(scale: EfficiencyScale, length: int, mode: str) -> float:
    """Bytes of the stored matrices, and a tenth more for the rest."""
    one = scale.heads * length**2 * getattr(torch, scale.dtype).itemsize
    return 1.1 * STORED_COPIES[mode] * one


def _free(device: torch.device) -> int:
    return torch.cuda.mem_get_info()[0] if device.type == "cuda" else psutil.virtual_memory().available


def ratios_of(lengths: Mapping[str, Any]) -> dict[str, Any]:
    """Transformer ÷ row in time and memory: mode → row → length → {seconds, bytes}; None if out of memory."""
    return {
        mode: {
            name: {length: _ratio(rows[STORED][mode], rows[name][mode]) for length, rows in lengths.items()}
            for name in ROWS
            if name != STORED
        }
        for mode in MODES
    }


def _ratio(above: Mapping[str, Any] | None, below: Mapping[str, Any] | None) -> dict[str, float | None]:
    if above is None or below is None:
        return {"seconds": None, "bytes": None}
    return {"seconds": above["median"] / below["median"], "bytes": above["bytes"] / below["bytes"]}


def published_ratios() -> dict[str, dict[str, dict[str, float]]]:
    """Transformer ÷ row of the paper's own table, row → length → {seconds, bytes}."""
    return {
        name: {
            str(length): {"bytes": stored[0] / row[0], "seconds": stored[1] / row[1]}
            for length, stored, row in zip(PUBLISHED_LENGTHS, PUBLISHED[STORED], rows, strict=True)
        }
        for name, rows in PUBLISHED.items()
        if name != STORED
    }


def _blocks(measured: Mapping[str, Any], scale: EfficiencyScale) -> list[Block]:
    lengths = measured["lengths"]
    kernel = f"a residual convolution of {scale.kernel}" if scale.kernel else "no convolution"
    blocks: list[Block] = [
        f"One sequence, {scale.heads} heads of {scale.head_dim}, {scale.dtype}. The module: projections to "
        f"queries, keys and values (width {scale.heads * scale.head_dim}) and the mechanism, for "
        f"Nyströmformer with {kernel}; no output projection. `Transformer` stores the n × n matrix; "
        "`exact, fused` is PyTorch's scaled_dot_product_attention. Training is forward and backward, to the "
        "input and all weights.",
        f"Time: median of at most {scale.repeats} runs, all rows in turn (fewer where one takes long: "
        f"{scale.patience:g} s). Memory: {measured['memory_method']}; without weights and input. "
        "On a CPU Nyströmformer's kernel also keeps under 1 MB a thread outside PyTorch's allocator.",
    ]
    for mode in MODES:
        for title, show in (
            ("ms", lambda one: f"{1e3 * one['median']:.1f}"),
            ("MB", lambda one: _number(1e-6 * one["bytes"])),
        ):
            cells = [
                (
                    name,
                    *(
                        "out of memory" if rows[name][mode] is None else show(rows[name][mode])
                        for rows in lengths.values()
                    ),
                )
                for name in ROWS
            ]
            blocks += [f"## {mode.capitalize()}, {title}", table(["", *lengths], cells)]
    for mode in MODES:
        blocks.append(f"## Transformer ÷ row, {mode}")
        if mode == "inference":
            blocks.append("In parentheses the paper's ratios, of its inference on a GTX 1080Ti.")
        head = ["", *(f"{n}, {what}" for what in ("time", "memory") for n in lengths)]
        blocks.append(table(head, _ratio_rows(measured, mode)))
    return [*blocks, _verdict(measured), DIFFERS]


DIFFERS = (
    "What differs from the paper: the device and its float format; the fused, Performer and training rows, "
    "which the paper does not have; the residual convolution, which the paper's timing may not include; "
    "Longformer's [CLS] shares the other tokens' projections; and Nyströmformer on a CPU is a kernel written "
    "for it, while the other rows are PyTorch's operators."
)


def _ratio_rows(measured: Mapping[str, Any], mode: str) -> list[list[str]]:
    rows = []
    for name, by_length in measured["transformer_over_row"][mode].items():
        row = [name]
        for what in ("seconds", "bytes"):
            for length, one in by_length.items():
                shown = "–" if one[what] is None else _number(one[what])
                known = measured["published_transformer_over_row"].get(name, {}).get(length)
                row.append(f"{shown} ({_number(known[what])})" if known and mode == "inference" else shown)
        rows.append(row)
    return rows


def _verdict(measured: Mapping[str, Any]) -> list[str]:
    """Whether the paper's ratios of Nyströmformer-64 are reached where they are largest."""
    lines = []
    for length in ("4096", "8192"):
        one = measured["transformer_over_row"]["inference"][OURS].get(length)
        if one is None or one["seconds"] is None:
            continue
        asked = measured["published_transformer_over_row"][OURS][length]
        told = [
            f"{what} {_number(one[key])} where the paper has {_number(asked[key])}"
            + ("" if one[key] >= asked[key] else " (not reached)")
            for what, key in (("time", "seconds"), ("memory", "bytes"))
        ]
        lines.append(f"- {length} tokens, Transformer ÷ {OURS}: {'; '.join(told)}.")
    return lines


def _number(x: float) -> str:
    return f"{x:.1f}" if x < 100 else f"{x:.0f}"


def _times(x: float | None) -> str:
    return "an unknown multiple of" if x is None else f"{_number(x)} times"


def _draw(measured: dict[str, Any], path: Path) -> None:
    lengths = measured["lengths"]
    with picture(path, 2, 2, width="page", height=4.3, sharex=True, sharey="row") as (figure, axes):
        for row, (key, factor, label) in enumerate(
            (("median", 1e3, "time (ms)"), ("bytes", 1e-6, "memory (MB)"))
        ):
            axes[row][0].set_ylabel(label)
            for axis, mode in zip(axes[row], MODES, strict=True):
                for name, style in zip(ROWS, STYLES, strict=False):
                    fits = [n for n in lengths if lengths[n][name][mode] is not None]
                    values = [factor * lengths[n][name][mode][key] for n in fits]
                    axis.plot([int(n) for n in fits], values, **style, label=name)
                log_log(axis, [int(n) for n in lengths])
                axis.minorticks_off()
        for axis, mode in zip(axes[0], MODES, strict=True):
            axis.set_title(mode)
        for axis in axes[1]:
            axis.set_xlabel("tokens of the sequence")
        legend_below(figure, axes[0][0], columns=4)
