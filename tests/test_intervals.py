"""Intervals and tests against published values and their own definitions."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from nystromformer.intervals import (
    difference_of_means,
    in_percent,
    mcnemar,
    paired_difference,
    proportion_interval,
)


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_intervals_are_those_of_newcombe(right, count, low, high):
    """Newcombe, Two-sided confidence intervals for the single proportion, 1998, table I, method 3."""
    assert proportion_interval(right / count, count) == pytest.approx((low, high), abs=5e-5)


def test_a_share_is_within_its_interval_in_95_of_100_cases():
    generator = np.random.default_rng(0)
    drawn = generator.binomial(400, 0.87, size=1000) / 400
    inside = [low <= 0.87 <= high for low, high in (proportion_interval(share, 400) for share in drawn)]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.02)


def test_mcnemar_counts_only_where_the_two_differ():
    both, first, second = [True] * 50, [True] * 8, [False] * 8
    # One-sided 2⁻⁸, twice.
    assert mcnemar([*both, *first], [*both, *second]) == pytest.approx(2 * 0.5**8)
    assert mcnemar(both, both) == 1
    assert mcnemar([True, False], [False, True]) == 1


def test_welch_against_its_formula():
    first, second = [27.5, 21.0, 19.0, 23.6], [27.1, 22.0, 20.8, 23.4, 28.1, 30.5]
    low, high = difference_of_means(first, second)
    error = np.sqrt(np.var(first, ddof=1) / 4 + np.var(second, ddof=1) / 6)
    assert (low + high) / 2 == pytest.approx(np.mean(second) - np.mean(first))
    assert (high - low) / 2 / error == pytest.approx(2.4, abs=0.1)  # Student's t of 6.8 degrees of freedom
    assert difference_of_means([1.0], second) is None
    assert difference_of_means([1.0, 1.0], [2.0, 2.0]) is None


def test_a_paired_bootstrap_is_narrower_than_the_examples_are_hard():
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 2, 300)
    first = np.where(generator.random(300) < 0.8, labels, 1 - labels)
    second = first.copy()
    second[:6] = labels[:6]  # right where the first was wrong, on a few
    gain = f1_score(labels, second) - f1_score(labels, first)
    low, high = paired_difference(f1_score, labels, first, second, draws=500)
    assert 0 <= low <= gain <= high < 0.03
    assert paired_difference(f1_score, labels, first, first, draws=50) == (0, 0)


def test_how_an_interval_is_shown():
    assert in_percent((0.2553, 0.3662)) == "[25.5, 36.6]"
