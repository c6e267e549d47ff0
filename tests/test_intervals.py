"""Intervals and tests against published values and their own definitions."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from nystromformer.intervals import (
    bootstrap,
    difference_of_means,
    in_percent,
    mcnemar,
    middle_of,
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


def scipys_interval(figure, labels, first, second):
    """Of figure(labels, second) − figure(labels, first), by scipy's own paired bootstrap."""
    found = stats.bootstrap(
        tuple(np.asarray(each, float) for each in (labels, first, second)),
        lambda truth, one, other: figure(truth, other) - figure(truth, one),
        paired=True, vectorized=False, n_resamples=500, method="percentile", rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return found.low, found.high


def test_a_paired_bootstrap_is_narrower_than_the_examples_are_hard():
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 2, 300)
    first = np.where(generator.random(300) < 0.8, labels, 1 - labels)
    second = first.copy()
    second[:6] = labels[:6]  # right where the first was wrong, on a few
    gain = f1_score(labels, second) - f1_score(labels, first)
    samples = bootstrap(f1_score, labels, [first[None], second[None]])
    low, high = middle_of(samples[:, 1] - samples[:, 0])
    assert 0 <= low <= gain <= high < 0.03
    assert (low, high) == pytest.approx(scipys_interval(f1_score, labels, first, second))
    samples = bootstrap(f1_score, labels, [first[None], first[None]], draws=50)
    assert middle_of(samples[:, 1] - samples[:, 0]) == (0, 0)


def accuracy(labels, predictions):
    return np.mean(labels == predictions)


def test_of_one_seed_a_bootstrap_is_wilson_s_interval():
    labels, predictions = np.ones(400), np.repeat([1.0, 0.0], [320, 80])
    found = middle_of(bootstrap(accuracy, labels, [predictions[None]], draws=2000)[:, 0])
    assert found == pytest.approx(proportion_interval(0.8, 400), abs=0.006)


def test_seeds_that_differ_widen_the_interval():
    """Of seeds whose figures have the variance v, and n examples: √(v / seeds + p(1 − p) / n)."""
    generator = np.random.default_rng(2)
    labels = np.ones(2000)
    shares = np.array([0.70, 0.78, 0.74, 0.82, 0.76, 0.80])
    predictions = (generator.random((6, 2000)) < shares[:, None]).astype(float)
    low, high = middle_of(bootstrap(accuracy, labels, [predictions], draws=2000)[:, 0])
    of_seeds = predictions.mean(1).std() / np.sqrt(6)
    # Independent seeds: their examples' errors average out as well.
    expected = 2 * 1.96 * np.sqrt(of_seeds**2 + 0.77 * 0.23 / 2000 / 6)
    assert high - low == pytest.approx(expected, rel=0.15)
    alone = middle_of(bootstrap(accuracy, labels, [predictions[:1]], draws=2000)[:, 0])
    assert alone[1] - alone[0] == pytest.approx(2 * 1.96 * np.sqrt(0.7 * 0.3 / 2000), rel=0.15)


def test_a_difference_is_paired_by_example_and_by_seed():
    generator = np.random.default_rng(3)
    labels = np.ones(500)
    shares = [0.6, 0.7, 0.8]  # the seeds differ by far more than the models
    first = np.array([generator.random(500) < share for share in shares], float)
    second = first.copy()
    second[:, :10] = 1.0
    samples = bootstrap(accuracy, labels, [first, second])
    low, high = middle_of(samples[:, 1] - samples[:, 0])
    assert 0 <= low < high < 0.02


def test_how_an_interval_is_shown():
    assert in_percent((0.2553, 0.3662)) == "[25.5, 36.6]"
