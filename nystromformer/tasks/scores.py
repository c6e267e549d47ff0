"""The tasks' metrics, by scikit-learn and scipy, on predictions of a whole set.

A figure that its definition leaves open is 0: Matthews or a correlation where all predictions are the same.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    matthews_corrcoef,
    mean_absolute_error,
    mean_squared_error,
)

from nystromformer.tasks.task import Task

Numbers = NDArray[np.float64]


def _correlation(function: Callable) -> Callable[[Numbers, Numbers], float]:
    def compute(labels: Numbers, predictions: Numbers) -> float:
        if len(labels) < 2:
            return 0.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # constant input has no correlation, which nan says already
            found = float(function(labels, predictions).statistic)
        return found if math.isfinite(found) else 0.0

    return compute


METRICS: dict[str, Callable[[Numbers, Numbers], float]] = {
    "accuracy": lambda labels, predictions: float(accuracy_score(labels, predictions)),
    # Of the second class, as GLUE counts it for MRPC and QQP.
    "f1": lambda labels, predictions: float(f1_score(labels, predictions, pos_label=1, zero_division=0)),
    "f1_macro": lambda labels, predictions: float(
        f1_score(labels, predictions, average="macro", zero_division=0)
    ),
    "matthews": lambda labels, predictions: float(matthews_corrcoef(labels, predictions)),
    "mse": lambda labels, predictions: float(mean_squared_error(labels, predictions)),
    "mae": lambda labels, predictions: float(mean_absolute_error(labels, predictions)),
    "pearson": _correlation(pearsonr),
    "spearman": _correlation(spearmanr),
}
"""(labels, predictions) → figure; label ids, or numbers for errors and correlations."""


def shown(name: str, value: float) -> str:
    """A figure in a table of percentages; an error has the unit of what it is an error of, or its square."""
    return f"{value:.4g}" if name.startswith(("mse", "mae")) else f"{100 * value:.1f}"


def figures_of(task: Task, labels: Sequence[float], predictions: Sequence[float]) -> dict[str, float]:
    """Each of the task's metrics and `score`, the mean of those that GLUE averages."""
    truth, answers = np.asarray(labels, np.float64), np.asarray(predictions, np.float64)
    return with_score(task, {name: METRICS[name](truth, answers) for name in task.metrics})


def with_score(task: Task, figures: dict[str, float]) -> dict[str, float]:
    """The figures and `score`, the mean of those that the best checkpoint is chosen by."""
    return {**figures, "score": float(np.mean([figures[name] for name in task.score]))}


def figures_of_sets(figures: dict[str, dict[str, float]]) -> dict[str, float]:
    """Figures of several held-out sets as one: `accuracy_matched` …, and the mean of their scores.

    With one set its figures are unchanged.
    """
    if len(figures) == 1:
        (only,) = figures.values()
        return only
    flat = {
        f"{metric}_{name}": value
        for name, found in figures.items()
        for metric, value in found.items()
        if metric != "score"
    }
    flat["score"] = float(np.mean([found["score"] for found in figures.values()]))
    return flat
