"""Pictures of a seed or a file of predictions: learning curve, confusion, scores of classes, reliability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from sklearn.metrics import confusion_matrix

from nystromformer.pictures import STYLES, picture, plot_events
from nystromformer.tasks.scores import BINS, Reliability, calibration_error
from nystromformer.training.metrics import MetricsLog

RELIABILITY = "reliability.png"
_MOST_NAMED = 30
"""With more classes than this, a matrix has no room for numbers."""


def draw_learning_curve(metrics: MetricsLog, path: Path, title: str) -> None:
    """Training and held-out loss, and the metrics, by step."""
    train, validation = metrics.events("train"), metrics.events("validation")
    with picture(path, 1, 2, width="half screen", height=3.6, title=title, legends=True) as (
        _,
        (loss, quality),
    ):
        plot_events(loss, train, "loss", color="0.6", label="training")
        plot_events(loss, validation, "loss", color="C0", marker="o", label="held out")
        loss.set(title="Loss", xlabel="step")
        for name in validation[-1] if validation else ():
            if name not in ("kind", "step", "seconds", "loss", "score"):
                plot_events(quality, validation, name, marker="o", label=name)
        quality.set(title="Held-out examples", xlabel="step")


def draw_confusion(
    classes: Sequence[str], labels: Sequence[float], predictions: Sequence[float], path: Path, title: str
) -> list[list[int]]:
    """Draw the confusion matrix and return it: a row a true class, a column a predicted one."""
    names = [name.replace("$", r"\$") for name in classes]  # or matplotlib reads formulas in them
    numbers = range(len(classes))
    counts = confusion_matrix(labels, predictions, labels=numbers)
    size = max(3.2, min(0.6 * len(classes) + 2.4, 12))
    with picture(path, width=size, height=size) as (_, axes):
        axes.grid(False)
        axes.imshow(counts, cmap="Blues")
        if len(classes) <= _MOST_NAMED:
            for row in numbers:
                for column in numbers:
                    color = "w" if counts[row, column] > counts.max() / 2 else "k"
                    axes.text(column, row, counts[row, column], ha="center", va="center", color=color)
            axes.set_xticks(numbers, names, rotation=45, ha="right")
            axes.set_yticks(numbers, names)
        axes.set(xlabel="predicted", ylabel="true")
        axes.set_title(title, fontsize=9)
    return counts.tolist()


def draw_class_scores(classes: Mapping[str, Mapping[str, float]], path: Path, title: str) -> None:
    """Precision, recall and F1 of each class as bars; of many, the commonest."""
    shown = list(classes)[:_MOST_NAMED]
    few = "" if len(shown) == len(classes) else f", the {len(shown)} commonest of {len(classes)} classes"
    with picture(path, width=6.5, height=0.32 * len(shown) + 1.6) as (figure, axes):
        for number, name in enumerate(("precision", "recall", "f1")):
            places = [place + 0.27 * (number - 1) for place in range(len(shown))]
            axes.barh(places, [classes[label][name] for label in shown], 0.27, color=f"C{number}", label=name)
        ticks = [f"{label} ({classes[label]['support']:,.0f})".replace("$", r"\$") for label in shown]
        axes.set_yticks(range(len(shown)), ticks)
        axes.invert_yaxis()
        axes.set(xlim=(0, 1))
        axes.grid(False, axis="y")
        axes.legend(loc="lower left", ncols=3, bbox_to_anchor=(0, 1))
        figure.suptitle(f"{title}{few}", fontsize=9)


def draw_reliability(found: Reliability, path: Path, title: str) -> dict[str, object]:
    """Draw how often predictions of each certainty come true, and return it with the calibration error."""
    counts, chances, hits = np.array(found)
    some = counts > 0
    share, mean, error = hits[some] / counts[some], chances[some] / counts[some], calibration_error(found)
    middles = (np.arange(BINS) + 0.5) / BINS
    figure = picture(path, 2, width=4.2, height=5, title=title, sharex=True, height_ratios=(3, 1))
    with figure as (_, (upper, lower)):
        upper.plot([0, 1], [0, 1], color="0.6", linestyle=":", label="calibrated")
        upper.bar(middles[some], share, 1 / BINS, color="C0", alpha=0.3, edgecolor="C0")
        upper.plot(mean, share, **STYLES[0], label=f"calibration error {100 * error:.1f} %")
        upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="share that came true")
        upper.legend(loc="upper left")
        lower.bar(middles, counts, 1 / BINS, color="0.6")
        lower.set(xlabel="predicted probability", ylabel="predictions")
    return {
        "calibration_error": error,
        "counts": counts.tolist(),
        "chances": chances.tolist(),
        "hits": hits.tolist(),
    }
