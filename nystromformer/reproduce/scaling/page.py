"""The result: what was measured, the laws through it, what exact attention costs, and what is computed."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from nystromformer.pictures import STYLES, legend_below, picture
from nystromformer.reproduce.scaling.base import GPUS, LENGTHS, predictions
from nystromformer.reproduce.scaling.curves import EXACT, NYSTROM, Curve, column, curves, equal_loss
from nystromformer.reproduce.scaling.law import UNIDENTIFIED, Law, fit_law
from nystromformer.results import Result
from nystromformer.settings.reproduce import ReproduceSettings
from nystromformer.tables import Block, table

FITTED_FROM = 0.2
"""The share of a run's steps from which its validations are fitted; its warm-up never is."""
_FORMS = {"N, D": ("N", "D"), "C": ("C",)}


def scaling(settings: ReproduceSettings) -> Result:
    """Runs of three sizes at three lengths with exact and Nyström attention: curves, laws, and base computed.

    Raises:
        UserError: too few sizes or lengths, words that ask for different batches, or a `step` file that says
            nothing of base.
    """
    base = predictions(settings.scale.scaling, settings.step)  # before the minutes of training
    return result_of(curves(settings), base)


def result_of(found: Sequence[Curve], base: Mapping[str, Any], *, draws: int = 200) -> Result:
    """The page of finished runs, with intervals of so many draws."""
    laws = {
        attention: laws_of([one for one in found if one["attention"] == attention], draws=draws)
        for attention in (EXACT, NYSTROM)
    }
    ratios = equal_loss(found)
    longest = max(one["length"] for one in found)
    at_longest = [one for one in ratios if one["length"] == longest]
    flops, seconds = (_middle([one[name] for one in at_longest]) for name in ("flops", "seconds"))
    return Result(
        title="Loss against compute, exact and Nyström attention",
        measured={
            "runs": {_name(one, one["attention"]): one for one in found},
            "laws": {a: {form: asdict(law) for form, law in of.items()} for a, of in laws.items()},
            "equal_loss": {_name(one): one for one in ratios},
            "computed": dict(base),
        },
        blocks=[*_runs(found), *_ratios(ratios), *_laws(laws), *_base(base)],
        headline=f"At {longest} tokens exact attention needs {_cell(flops)} times the FLOPs and "
        f"{_cell(seconds)} times the time of Nyström attention for the same loss",
        plots={"scaling": _draw},
    )


def laws_of(found: Sequence[Curve], *, draws: int = 200) -> dict[str, Law]:
    """Of one attention: L(N, D) through the validations of all runs, L(C) through the last of each."""
    points = [
        (curve, point)
        for curve in found
        for point in curve["points"]
        if point["step"] > max(FITTED_FROM * curve["points"][-1]["step"], curve["warmup_steps"])
    ]
    last = [(curve, curve["points"][-1]) for curve in found]
    laws = {}
    for form, chosen in (("N, D", points), ("C", last)):
        quantities = {
            "N": np.array([curve["parameters"] for curve, _ in chosen], np.float64),
            "D": np.array([point["tokens"] for _, point in chosen]),
            "C": np.array([point["flops"] for _, point in chosen]),
        }
        laws[form] = fit_law(
            np.array([point["loss"] for _, point in chosen]),
            {name: quantities[name] for name in _FORMS[form]},
            [f"{curve['size']} {curve['length']}" for curve, _ in chosen],
            [curve["size"] for curve, _ in chosen],
            draws=draws,
        )
    return laws


def _name(one: Mapping[str, Any], *more: str) -> str:
    return ", ".join([one["size"], f"{one['length']} tokens", *more])


def _runs(found: Sequence[Curve]) -> Iterator[Block]:
    first = found[0]
    widths = {one["attention"]: one["convolution"] for one in found}
    beside = "both have the same residual convolution, so that the attention alone differs"
    if widths[EXACT] != widths[NYSTROM]:
        beside = f"residual convolutions of {widths[EXACT] or 0} (exact) and {widths[NYSTROM] or 0} tokens"
    yield (
        f"{len(found)} runs; at each size and length both attentions take the same batches, and {beside}. "
        f"The rate is constant after {first['warmup_steps']:,} steps of warm-up, so that each validation on "
        "the way is that of a run that ends there; no loss here is of a decayed rate. N is without "
        "embeddings; tokens are real ones, FLOPs the model's (forward and backward, `training/flops.py`); "
        f"loss is of {first['predictions']:,} masked tokens or about as many, held out, in nats:"
    )
    head = ("size", "length", "attention", "N, million", "with embeddings", "tokens/s", "tokens, million")
    rows = [
        (
            one["size"], one["length"], one["attention"], f"{one['parameters'] / 1e6:.2f}",
            f"{one['parameters_with_embeddings'] / 1e6:.2f}", f"{one['tokens_per_second']:,.0f}",
            f"{one['points'][-1]['tokens'] / 1e6:.2f}", f"{one['points'][-1]['flops'] / 1e12:.2f}",
            f"{one['points'][-1]['loss']:.3f}",
        )
        for one in found
    ]  # fmt: skip
    yield table((*head, "TFLOP", "MLM loss"), rows)


def _ratios(ratios: Sequence[Mapping[str, Any]]) -> Iterator[Block]:
    yield "## What exact attention needs for the same loss"
    yield (
        "Times what Nyström attention needs, for the best loss that both reach; above 1 Nyström attention "
        "is ahead. Where a curve reaches it is interpolated between validations; seconds are tokens at the "
        "run's median speed. One run each: the differences between sizes show how far to trust a figure."
    )
    rows = [(_name(one), f"{one['loss']:.3f}", *_cells(one)) for one in ratios]
    for length in sorted({one["length"] for one in ratios}):
        of = [one for one in ratios if one["length"] == length]
        middle = {name: _middle([one[name] for one in of]) for name in ("tokens", "flops", "seconds")}
        rows.append((f"**{length} tokens**, geometric mean", "", *_cells(middle)))
    yield table(("size and length", "loss", "tokens", "FLOPs", "seconds"), rows)


def _cells(ratios: Mapping[str, float | None]) -> list[str]:
    return [_cell(ratios[name]) for name in ("tokens", "flops", "seconds")]


def _cell(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.2f}"


def _middle(ratios: Sequence[float | None]) -> float | None:
    known = [ratio for ratio in ratios if ratio is not None]
    return statistics.geometric_mean(known) if known else None


def _laws(laws: Mapping[str, Mapping[str, Law]]) -> Iterator[Block]:
    yield "## Laws"
    yield (
        "L(N, D) = E + A_N (N/N₀)^(−α_N) + A_D (D/D₀)^(−α_D) through all validations past the first "
        f"{FITTED_FROM:.0%} of a run, and L(C) = E + A_C (C/C₀)^(−α_C) through the last one of each run. "
        "N₀, D₀ and C₀ are the points' geometric means, so that A is in "
        "nats at the middle of what was measured. Huber's loss of log L (Hoffmann et al. 2022, appendix "
        "D.3); in brackets 95 % intervals by a bootstrap over the runs, within each size."
    )
    rows, unknown = [], []
    for attention, of in laws.items():
        for form, law in of.items():
            for name, value in law.parameters.items():
                low, high = law.intervals[name]
                sure = "" if name not in law.unidentified else "not identified"
                rows.append(
                    (f"{attention}, L({form})", name, f"{value:.3g}", f"[{low:.3g}, {high:.3g}]", sure)
                )
            if law.unidentified:
                unknown.append(f"{', '.join(law.unidentified)} of {attention} L({form})")
    yield table(("law", "parameter", "value", "interval", ""), rows)
    errors = ", ".join(
        f"{attention} L({form}) {law.residual:.1%}"
        for attention, of in laws.items()
        for form, law in of.items()
    )
    told = [f"Median error of the loss: {errors}."]
    if unknown:
        told.append(
            f"**Not identified** (an interval that spans more than a factor of {UNIDENTIFIED:g}, reaches "
            "zero or does not hold the value; without E nothing else, since every A and α is that of one "
            f"E): {'; '.join(unknown)}. These runs do not say what they are: such a law describes its "
            "points, and nothing may be extrapolated by it."
        )
    told.append(
        "No loss of base is told: it would be of another corpus, another vocabulary and a size and a "
        "number of tokens far outside of these."
    )
    yield told


def _base(base: Mapping[str, Any]) -> Iterator[Block]:
    paper = base["paper"]
    yield "## 12 layers of 768 (computed)"
    mfu = "assumed, not measured" if base["assumed"] else "of `benchmark what=step`"
    yield (
        "**Computed, nothing here was run.** Exact attention is BERT's, without a convolution. "
        f"{base['device']}, bf16, peak {base['peak_flops'] / 1e12:.1f} TFLOP/s a GPU; tokens a second = MFU "
        f"× peak / FLOPs of a token, the MFU {mfu}. On several GPUs a step takes max(compute, forward + "
        "all-reduce): a ring's all-reduce of float32 gradients, 2 (g − 1)/g · 4 bytes a parameter, at "
        f"{base['node_bandwidth']:g} GB/s a GPU in a node of {base['gpus_per_node']} and "
        f"{base['network_bandwidth']:g} GB/s beyond, beside a backward pass of two thirds of the compute; "
        f"without latency, stragglers and waiting for data. {base['tokens_per_gpu']:,} tokens a GPU and "
        f"step; days for {paper['tokens'] / 1e9:.1f} billion tokens, the paper's {paper['steps']:,} steps "
        f"of {paper['batch_tokens']:,}:"
    )
    speeds = [f"tokens/s, {g} GPU{'s' * (g > 1)}" for g in GPUS]
    days = [f"days, {g}" for g in GPUS]
    rows = [
        (
            row["length"], row["attention"], f"{row['flops_per_token'] / 1e6:,.0f}",
            f"{row['mfu']:.1%}, {row['mfu_source']}", *(f"{row['tokens_per_second'][g]:,.0f}" for g in GPUS),
            *(f"{row['days'][g]:.3g}" for g in GPUS),
        )
        for row in base["rows"].values()
    ]  # fmt: skip
    yield table(("length", "attention", "MFLOP a token", "MFU", *speeds, *days), rows)
    yield (
        f"The same with the paper's batch kept, {paper['batch_tokens']:,} tokens shared by all GPUs at "
        f"{LENGTHS[0]} tokens, as if a small share were computed as fast as a large one:"
    )
    shared = [(name, *(f"{of[g]:.3g}" for g in GPUS)) for name, of in base["paper_batch"].items()]
    yield table(("attention (computed)", *days), shared)


def _draw(measured: dict[str, Any], path: Path) -> None:
    """Loss against FLOPs at each length: the validations of every run, and L(N, D) through them."""
    runs = measured["runs"].values()
    lengths, sizes = (sorted({run[name] for run in runs}) for name in ("length", "parameters"))
    with picture(path, 1, len(lengths), width="page", height=2.8, sharey=True, squeeze=False) as (
        figure,
        axes,
    ):
        for axis, length in zip(axes[0], lengths, strict=True):
            for run in (run for run in runs if run["length"] == length):
                nystrom = run["attention"] == NYSTROM
                style = {**STYLES[0 if nystrom else 1], "linestyle": "none"}
                number = sizes.index(run["parameters"])
                style["alpha"] = 0.35 + 0.65 * (number + 1) / len(sizes)
                style["markersize"] = 2 + 1.2 * number * 3 / len(sizes)
                flops = column(run, "flops")
                axis.plot(flops, column(run, "loss"), **style, label=f"{run['attention']}, {run['size']}")
                _draw_law(axis, run, Law(**measured["laws"][run["attention"]]["N, D"]), flops, style["color"])
            axis.set(title=f"{length} tokens", xscale="log", xlabel="model FLOPs")
        axes[0][0].set_ylabel("held-out MLM loss, nats")
        legend_below(figure, axes[0][0], 3)


def _draw_law(axis: Any, run: Curve, law: Law, flops: np.ndarray, color: str) -> None:
    trained = column(run, "tokens")
    tokens = np.geomspace(FITTED_FROM * trained[-1], trained[-1], 30)
    loss = law.loss({"N": np.full(30, float(run["parameters"])), "D": tokens})
    axis.plot(np.interp(tokens, trained, flops), loss, color=color, linewidth=0.7)
