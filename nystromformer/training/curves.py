"""A run's pictures: losses and accuracies beside untrained baselines, speed, the attention's error."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

from nystromformer.training.metrics import Event, MetricsLog

CHANCE_LOSS = math.log(2)
"""Loss of sentence order without looking: two orders, equally likely."""


def draw_curves(metrics: MetricsLog, path: Path, title: str) -> None:
    """Draw what the log holds so far; replaces the picture at once, never half."""
    train, validation = metrics.events("train"), metrics.events("validation")
    figure, (mlm, sop, accuracy) = _three_plots()
    _line(mlm, train, "mlm_loss", color="0.6", linewidth=1, label="training")
    _line(mlm, validation, "mlm_loss", color="C0", marker="o", markersize=3, label="validation")
    if validation:
        unigram = validation[-1]["unigram_loss"]
        mlm.axhline(unigram, color="C3", linestyle="--", label=f"unigram baseline {unigram:.2f}")
    mlm.set(title="Masked language modelling", xlabel="step", ylabel="loss (nats per token)")

    _line(sop, train, "sop_loss", color="0.6", linewidth=1, label="training")
    _line(sop, validation, "sop_loss", color="C0", marker="o", markersize=3, label="validation")
    sop.axhline(CHANCE_LOSS, color="C3", linestyle="--", label=f"chance {CHANCE_LOSS:.2f}")
    sop.set(title="Sentence order", xlabel="step", ylabel="loss (nats per pair)")

    _line(accuracy, validation, "mlm_accuracy", color="C0", marker="o", markersize=3, label="masked tokens")
    _line(accuracy, validation, "sop_accuracy", color="C1", marker="s", markersize=3, label="sentence order")
    accuracy.axhline(0.5, color="C3", linestyle="--", label="chance, sentence order")
    accuracy.set(title="Validation accuracy", xlabel="step", ylabel="share correct", ylim=(0, 1))

    _write(figure, path, title)


def draw_speed(metrics: MetricsLog, path: Path, title: str) -> None:
    """Draw what the steps cost and how large their gradients were."""
    train = metrics.events("train")
    figure, (speed, gradient, data) = _three_plots()
    _line(speed, train, "tokens_per_second", color="C0", label="real tokens")
    _line(speed, train, "padding_per_second", color="0.6", linewidth=1, label="padding")
    speed.set(title="Speed", xlabel="step", ylabel="positions per second", ylim=(0, None))
    _line(gradient, train, "gradient_norm", color="C0", label="before clipping")
    skipped = metrics.events("skipped")
    for number, event in enumerate(skipped):
        gradient.axvline(event["step"], color="C3", linewidth=1, label=None if number else "skipped")
    gradient.set(title="Gradient norm", xlabel="step", yscale="log")
    _line(data, train, "data_wait", color="C0", label="waiting for data")
    data.set(title="Share of the time", xlabel="step", ylim=(0, 1))
    _write(figure, path, title)


def draw_approximation(metrics: MetricsLog, path: Path, title: str) -> None:
    """Draw the error of each layer's attention, and each head's at the end, if any was measured."""
    events = [event for event in metrics.events("approximation") if event["mean"] is not None]
    if not events:
        return
    plt = _pyplot()
    figure, (layers, heads) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    count = len(events[-1]["heads"])
    for layer in range(count):
        color = plt.colormaps["viridis"](layer / max(count - 1, 1))
        _line(layers, events, f"layer_{layer}", color=color, marker="o", markersize=3, label=f"layer {layer}")
        errors = events[-1]["heads"][layer]
        heads.plot([layer] * len(errors), errors, "o", color=color, markersize=4)
    _line(layers, events, "mean", color="0.3", linestyle="--", label="mean")
    layers.set(title="Error of the attention matrix", xlabel="step", ylabel="‖S − Ŝ‖ / ‖S‖", ylim=(0, None))
    heads.set(title=f"Each head at step {events[-1]['step']:,}", xlabel="layer", ylim=(0, None))
    heads.set_xticks(range(count))
    _write(figure, path, title)


def _three_plots() -> tuple[Any, Any]:
    return _pyplot().subplots(1, 3, figsize=(12, 3.6), layout="constrained")


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")  # a picture in a file; no display needed
    import matplotlib.pyplot as plt

    return plt


def _line(axes: Any, events: list[Event], key: str, **style: Any) -> None:
    known = [event for event in events if event.get(key) is not None]
    axes.plot([event["step"] for event in known], [event[key] for event in known], **style)


def _write(figure: Any, path: Path, title: str) -> None:
    """Write the picture at once, never half; on a full disk keep the one before."""
    import matplotlib.pyplot as plt

    for axes in figure.axes:
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    figure.suptitle(title)
    beside = path.with_name(f".{path.stem}.tmp.png")
    try:
        figure.savefig(beside, dpi=120)
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        warnings.warn(f"cannot write {path} ({error.strerror})", stacklevel=3)
    finally:
        plt.close(figure)
