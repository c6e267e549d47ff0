"""A run's pictures: losses and accuracies beside untrained baselines, speed, the attention's error."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nystromformer.pictures import picture, plot_events
from nystromformer.training.metrics import MetricsLog
from nystromformer.training.phases import Plan

CHANCE_LOSS = math.log(2)
"""Loss of sentence order without looking: two orders, equally likely."""

_TRAINING: dict[str, Any] = {"color": "0.6", "linewidth": 1, "label": "training"}
_VALIDATION: dict[str, Any] = {"color": "C0", "marker": "o", "label": "validation"}
_BASELINE: dict[str, Any] = {"color": "C3", "linestyle": "--"}
_BORDER: dict[str, Any] = {"color": "0.3", "linestyle": ":", "linewidth": 1}


def draw_curves(metrics: MetricsLog, path: Path, title: str, plan: Plan) -> None:
    """Draw what the log holds so far; where a phase begins, all plots have a line."""
    train, validation = metrics.events("train"), metrics.events("validation")
    in_pairs = not validation or "sop_loss" in validation[-1]
    with _plots(path, title, columns=2 + in_pairs) as axes:
        mlm, accuracy = axes[0], axes[-1]
        plot_events(mlm, train, "mlm_loss", **_TRAINING)
        plot_events(mlm, validation, "mlm_loss", **_VALIDATION)
        if validation:
            unigram = validation[-1]["unigram_loss"]
            mlm.axhline(unigram, **_BASELINE, label=f"unigram baseline {unigram:.2f}")
        mlm.set(title="Masked language modelling", xlabel="step", ylabel="loss (nats per token)")

        plot_events(accuracy, validation, "mlm_accuracy", color="C0", marker="o", label="masked tokens")
        if in_pairs:
            sop = axes[1]
            plot_events(sop, train, "sop_loss", **_TRAINING)
            plot_events(sop, validation, "sop_loss", **_VALIDATION)
            sop.axhline(CHANCE_LOSS, **_BASELINE, label=f"chance {CHANCE_LOSS:.2f}")
            sop.set(title="Sentence order", xlabel="step", ylabel="loss (nats per pair)")
            plot_events(accuracy, validation, "sop_accuracy", color="C1", marker="s", label="sentence order")
            accuracy.axhline(0.5, **_BASELINE, label="chance, sentence order")
        accuracy.set(title="Validation accuracy", xlabel="step", ylabel="share correct", ylim=(0, 1))
        _mark_phases(axes, plan)


def _mark_phases(axes: Iterable[Any], plan: Plan) -> None:
    """A line where each phase but the first begins, its number above; nothing of a run of one."""
    borders = {phase.first_step: f"phase {n}" for n, phase in enumerate(plan.phases, start=1) if n > 1}
    for each in axes if borders else ():
        for step in borders:
            each.axvline(step, **_BORDER)
        each.secondary_xaxis("top").set_xticks(list(borders), list(borders.values()), fontsize=7)


def draw_speed(metrics: MetricsLog, path: Path, title: str, plan: Plan) -> None:
    """Draw what the steps cost, how large their gradients were."""
    train = metrics.events("train")
    with _plots(path, title) as (speed, gradient, data):
        _mark_phases((speed, gradient, data), plan)
        plot_events(speed, train, "tokens_per_second", color="C0", label="real tokens")
        plot_events(speed, train, "padding_per_second", color="0.6", linewidth=1, label="padding")
        speed.set(title="Speed", xlabel="step", ylabel="positions per second", ylim=(0, None))
        plot_events(gradient, train, "gradient_norm", color="C0", label="before clipping")
        for number, event in enumerate(metrics.events("skipped")):
            gradient.axvline(event["step"], color="C3", linewidth=1, label=None if number else "skipped")
        gradient.set(title="Gradient norm", xlabel="step", yscale="log")
        plot_events(data, train, "data_wait", color="C0", label="waiting for data")
        data.set(title="Share of the time", xlabel="step", ylim=(0, 1))


def draw_approximation(metrics: MetricsLog, path: Path, title: str) -> None:
    """Draw the error of each layer's attention, and each head's at the end, if any was measured."""
    events = [event for event in metrics.events("approximation") if event["mean"] is not None]
    if not events:
        return
    from matplotlib import colormaps

    last = events[-1]["heads"]
    with _plots(path, title, columns=2, width="half screen") as (layers, heads):
        for layer, errors in enumerate(last):
            style: dict[str, Any] = {
                "color": colormaps["viridis"](layer / max(len(last) - 1, 1)),
                "marker": "o",
            }
            plot_events(layers, events, f"layer_{layer}", **style, label=f"layer {layer}")
            heads.plot([layer] * len(errors), errors, **style, linestyle="none", markersize=4)
        plot_events(layers, events, "mean", color="0.3", linestyle="--", label="mean")
        layers.set(
            title="Error of the attention matrix", xlabel="step", ylabel="‖S − Ŝ‖ / ‖S‖", ylim=(0, None)
        )
        heads.set(title=f"Each head at step {events[-1]['step']:,}", xlabel="layer", ylim=(0, None))
        heads.set_xticks(range(len(last)))


@contextmanager
def _plots(path: Path, title: str, columns: int = 3, width: str = "screen") -> Iterator[Any]:
    """The axes of a picture; on a full disk the one before is kept, and the run goes on."""
    try:
        with picture(path, 1, columns, width=width, height=3.6, title=title, legends=True) as (_, axes):
            yield axes
    except OSError as error:
        warnings.warn(f"cannot write {path} ({error.strerror})", stacklevel=4)
