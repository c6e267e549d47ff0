"""curves.png: how losses and accuracies went, with the baselines that need no training."""

from __future__ import annotations

import math
from pathlib import Path

from nystromformer.training.metrics import MetricsLog

CHANCE_LOSS = math.log(2)
"""Loss of sentence order without looking: two orders, equally likely."""


def draw_curves(metrics: MetricsLog, path: Path, title: str) -> None:
    """Draw what the log holds so far; replaces the picture at once, never half."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    train, validation = metrics.events("train"), metrics.events("validation")
    figure, (mlm, sop, accuracy) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")

    def line(axes, events, key, **style):
        axes.plot([e["step"] for e in events], [e[key] for e in events], **style)

    line(mlm, train, "mlm_loss", color="0.6", linewidth=1, label="training")
    line(mlm, validation, "mlm_loss", color="C0", marker="o", markersize=3, label="validation")
    if validation:
        unigram = validation[-1]["unigram_loss"]
        mlm.axhline(unigram, color="C3", linestyle="--", label=f"unigram baseline {unigram:.2f}")
    mlm.set(title="Masked language modelling", xlabel="step", ylabel="loss (nats per token)")

    line(sop, train, "sop_loss", color="0.6", linewidth=1, label="training")
    line(sop, validation, "sop_loss", color="C0", marker="o", markersize=3, label="validation")
    sop.axhline(CHANCE_LOSS, color="C3", linestyle="--", label=f"chance {CHANCE_LOSS:.2f}")
    sop.set(title="Sentence order", xlabel="step", ylabel="loss (nats per pair)")

    line(accuracy, validation, "mlm_accuracy", color="C0", marker="o", markersize=3, label="masked tokens")
    line(accuracy, validation, "sop_accuracy", color="C1", marker="s", markersize=3, label="sentence order")
    accuracy.axhline(0.5, color="C3", linestyle="--", label="chance, sentence order")
    accuracy.set(title="Validation accuracy", xlabel="step", ylabel="share correct", ylim=(0, 1))

    for axes in (mlm, sop, accuracy):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle(title)
    beside = path.with_name(f".{path.stem}.tmp.png")
    figure.savefig(beside, dpi=120)
    plt.close(figure)
    beside.replace(path)
