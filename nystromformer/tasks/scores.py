"""The tasks' metrics, by scikit-learn, scipy and seqeval, on predictions of a whole set.

A figure that its definition leaves open is 0: Matthews or a correlation where all predictions are the same.
"""

from __future__ import annotations

import math
import re
import string
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import (
    f1_score,
    matthews_corrcoef,
    mean_absolute_error,
    mean_squared_error,
)

from nystromformer.tasks.tagged_files import is_spans

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
    "accuracy": lambda labels, predictions: float(np.mean(labels == predictions)),
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


# --- reliability ---------------------------------------------------------------------------------------

BINS = 15
"""Intervals of probability, of equal width (Guo et al., On calibration of modern neural networks, 2017)."""
Reliability = list[list[float]]
"""(3, BINS): how many probabilities are in each, their sum, and how many of what they are of came true."""


def reliability(chances: NDArray, right: NDArray) -> Reliability:
    """Of probabilities between 0 and 1, and whether what each is of is true."""
    places = np.clip(np.ceil(chances * BINS).astype(int) - 1, 0, BINS - 1)
    columns = (np.ones(len(places)), chances, right)
    return [np.bincount(places, weights, BINS).tolist() for weights in columns]


def calibration_error(found: Reliability) -> float:
    """The expected one: how far apart probability and share of the true are in an interval, on average."""
    counts, chances, hits = np.array(found)
    return float(np.abs(hits - chances).sum() / counts.sum())


# --- spans, see tagged_files ---------------------------------------------------------------------------


def span_scores(truth: list[list[str]], found: list[list[str]], scheme: str) -> dict[str, float]:
    """Strict precision, recall and F1 of spans over all classes, by seqeval."""
    from seqeval.metrics.v1 import precision_recall_fscore_support  # its strict mode

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on classes without a span, which count as 0
        precision, recall, f1, _ = precision_recall_fscore_support(
            truth, found, scheme=_of_seqeval(scheme), average="micro", zero_division=0
        )
    return {"f1": float(f1), "precision": float(precision), "recall": float(recall)}


def class_scores(truth: list[list[str]], found: list[list[str]], scheme: str) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and count of each class, the commonest first."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if is_spans(scheme):
            from seqeval.metrics import classification_report

            report = classification_report(
                truth, found, mode="strict", scheme=_of_seqeval(scheme), output_dict=True, zero_division=0
            )
        else:
            from sklearn.metrics import classification_report as of_words

            report = of_words(list(chain(*truth)), list(chain(*found)), output_dict=True, zero_division=0)
    means = ("accuracy", "micro avg", "macro avg", "weighted avg")
    classes = {name: scores for name, scores in report.items() if name not in means}
    return {
        name: {key.removesuffix("-score"): float(value) for key, value in scores.items()}
        for name, scores in sorted(classes.items(), key=lambda item: -item[1]["support"])
    }


def _of_seqeval(scheme: str) -> type:
    from seqeval import scheme as schemes

    return {"bio": schemes.IOB2, "iobes": schemes.IOBES}[scheme]


# --- answers, as SQuAD's official scripts define them ---------------------------------------------------


def normalized(text: str) -> str:
    """Lower case, without punctuation, articles and superfluous white space."""
    kept = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def answer_scores(found: str, right: Sequence[tuple[int, str]]) -> tuple[float, float]:
    """Exact match and F1 of one answer: the highest over the right ones, of which none means no answer.

    Right answers that are only articles and punctuation do not count, as in SQuAD 2.0's script.
    """
    texts = [text for _, text in right if normalized(text)] or [""]
    exact = max(float(normalized(found) == normalized(text)) for text in texts)
    return exact, max(f1_of(found, text) for text in texts)


def f1_of(found: str, right: str) -> float:
    """Harmonic mean of precision and recall of the words; 1 where both have none, 0 where one has none."""
    words, answer = normalized(found).split(), normalized(right).split()
    if not words or not answer:
        return float(words == answer)
    common = sum((Counter(words) & Counter(answer)).values())
    return 2 * common / (len(words) + len(answer))
