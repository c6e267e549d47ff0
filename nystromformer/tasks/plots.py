"""Pictures of a seed: learning curve and confusion matrix."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sklearn.metrics import confusion_matrix

from nystromformer.training.metrics import MetricsLog

_MOST_NAMED = 30
"""With more classes than this, a matrix has no room for numbers."""


def draw_learning_curve(metrics: MetricsLog, path: Path, title: str) -> None:
    """Training and held-out loss, and the metrics, by step."""
    train, validation = metrics.events("train"), metrics.events("validation")
    figure, (loss, quality) = _pyplot().subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    loss.plot([e["step"] for e in train], [e["loss"] for e in train], color="0.6", label="training")
    steps = [event["step"] for event in validation]
    loss.plot(steps, [event["loss"] for event in validation], color="C0", marker="o", label="held out")
    loss.set(title="Loss", xlabel="step")
    for name in validation[-1] if validation else ():
        if name not in ("kind", "step", "loss", "score"):
            quality.plot(steps, [event[name] for event in validation], marker="o", label=name)
    quality.set(title="Held-out examples", xlabel="step")
    for axes in (loss, quality):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle(title)
    _write(figure, path)


def draw_confusion(
    classes: Sequence[str], labels: Sequence[float], predictions: Sequence[float], path: Path, title: str
) -> list[list[int]]:
    """Draw the confusion matrix and return it: a row a true class, a column a predicted one."""
    names = [name.replace("$", r"\$") for name in classes]  # or matplotlib reads formulas in them
    counts = confusion_matrix(labels, predictions, labels=range(len(classes)))
    size = max(3.2, min(0.6 * len(classes) + 2.4, 12))
    figure, axes = _pyplot().subplots(figsize=(size, size), layout="constrained")
    axes.imshow(counts, cmap="Blues")
    if len(classes) <= _MOST_NAMED:
        for row in range(len(classes)):
            for column in range(len(classes)):
                dark = counts[row, column] > counts.max() / 2
                axes.text(
                    column, row, counts[row, column], ha="center", va="center", color="w" if dark else "k"
                )
        axes.set_xticks(range(len(classes)), names, rotation=45, ha="right")
        axes.set_yticks(range(len(classes)), names)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(title, fontsize=9)
    _write(figure, path)
    return counts.tolist()


def draw_class_scores(classes: Mapping[str, Mapping[str, float]], path: Path, title: str) -> None:
    """Precision, recall and F1 of each class as bars; of many, the commonest."""
    shown = list(classes)[:_MOST_NAMED]
    figure, axes = _pyplot().subplots(figsize=(6.5, 0.32 * len(shown) + 1.6), layout="constrained")
    for number, (name, colour) in enumerate((("precision", "C0"), ("recall", "C1"), ("f1", "C2"))):
        places = [place + 0.27 * (number - 1) for place in range(len(shown))]
        axes.barh(places, [classes[label][name] for label in shown], 0.27, color=colour, label=name)
    ticks = [f"{label} ({classes[label]['support']:,.0f})".replace("$", r"\$") for label in shown]
    axes.set_yticks(range(len(shown)), ticks)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1))
    axes.grid(alpha=0.3, axis="x")
    axes.legend(fontsize=8, loc="lower left", ncols=3, bbox_to_anchor=(0, 1))
    few = "" if len(shown) == len(classes) else f", the {len(shown)} commonest of {len(classes)} classes"
    figure.suptitle(f"{title}{few}", fontsize=9)
    _write(figure, path)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")  # a picture in a file; no display needed
    import matplotlib.pyplot as plt

    return plt


def _write(figure: Any, path: Path) -> None:
    """At once, never half."""
    beside = path.with_name(f".{path.stem}.tmp.png")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # it draws a box instead
        figure.savefig(beside, dpi=120)
    beside.replace(path)
    _pyplot().close(figure)
