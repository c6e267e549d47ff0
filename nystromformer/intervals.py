"""95 % confidence intervals and paired tests, by scipy: what a difference of two figures is worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Interval = tuple[float, float]
LEVEL = 0.95


def proportion_interval(share: float, count: int) -> Interval:
    """Wilson's interval of a share of `count` independent examples."""
    from scipy.stats import binomtest

    found = binomtest(round(share * count), count).proportion_ci(LEVEL, method="wilson")
    return float(found.low), float(found.high)


def difference_of_means(first: Sequence[float], second: Sequence[float]) -> Interval | None:
    """Welch's interval of mean(second) − mean(first), of seeds for example; None of one value a side, and
    where no value differs from the others of its side."""
    from scipy.stats import ttest_ind

    if min(len(first), len(second)) < 2 or not np.std(first) + np.std(second):
        return None
    found = ttest_ind(second, first, equal_var=False).confidence_interval(LEVEL)
    return float(found.low), float(found.high)


def mcnemar(first_right: Sequence[bool] | np.ndarray, second_right: Sequence[bool] | np.ndarray) -> float:
    """The exact p-value of two models being right equally often on the same examples."""
    from scipy.stats import binomtest

    first, second = np.asarray(first_right, bool), np.asarray(second_right, bool)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    differing = only_first + only_second
    return float(binomtest(only_first, differing).pvalue) if differing else 1.0


def mean_interval(values: Sequence[float] | np.ndarray) -> Interval:
    """The interval of a mean over independent examples, such as queries: the bootstrap's percentiles. Of the
    differences of two rankings on the same queries it is that of the difference of their means."""
    found = np.asarray(values, np.float64)
    return middle_of(bootstrap(lambda _, some: some.mean(), found, [found[None]], draws=2000)[:, 0])


def bootstrap(
    figure: Callable[[np.ndarray, np.ndarray], float],
    labels: np.ndarray,
    models: Sequence[np.ndarray],
    *,
    draws: int = 500,
) -> np.ndarray:
    """A figure of several models, the mean over their seeds, on examples and seeds that are drawn anew.

    Each draw has the same examples and seeds of all models, so that their differences are paired.

    Args:
        figure: of labels and predictions.
        labels: (examples,)
        models: each model's predictions, (seeds, examples).

    Returns:
        (draws, models)
    """
    generator = np.random.default_rng(0)
    found = np.empty((draws, len(models)))
    for draw in range(draws):
        rows = generator.integers(0, len(labels), len(labels))
        seeds = generator.integers(0, len(models[0]), len(models[0]))
        for number, predictions in enumerate(models):
            found[draw, number] = np.mean([figure(labels[rows], predictions[each, rows]) for each in seeds])
    return found


def middle_of(samples: np.ndarray) -> Interval:
    """The interval that a bootstrap's samples, (draws,), give: their percentiles."""
    low, high = np.percentile(samples, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)


def in_percent(interval: Interval) -> str:
    """An interval of shares as tables show it."""
    return f"[{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
