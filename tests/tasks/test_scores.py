"""Known answers: by scikit-learn and scipy on random predictions, and by the definitions on small ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as reference

from nystromformer.tasks.benchmarks import TASKS
from nystromformer.tasks.scores import METRICS, calibration_error, figures_of_sets, reliability

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 2, 400)
ANSWERS = np.where(RANDOM.random(400) < 0.7, LABELS, 1 - LABELS)


def test_classification_against_scikit_learn():
    found = TASKS["mrpc"].figures(LABELS.tolist(), ANSWERS.tolist())
    assert found["accuracy"] == reference.accuracy_score(LABELS, ANSWERS)
    assert found["f1"] == reference.f1_score(LABELS, ANSWERS)
    assert found["score"] == pytest.approx((found["accuracy"] + found["f1"]) / 2)
    cola = TASKS["cola"].figures(LABELS.tolist(), ANSWERS.tolist())
    assert cola["score"] == cola["matthews"] == pytest.approx(reference.matthews_corrcoef(LABELS, ANSWERS))


def test_matthews_and_f1_by_their_definitions():
    hit, miss, false, right = (
        int(((t == LABELS) & (p == ANSWERS)).sum()) for t, p in ((1, 1), (1, 0), (0, 1), (0, 0))
    )
    matthews = (hit * right - false * miss) / math.sqrt(
        (hit + false) * (hit + miss) * (right + false) * (right + miss)
    )
    assert METRICS["matthews"](LABELS, ANSWERS) == pytest.approx(matthews)
    assert METRICS["f1"](LABELS, ANSWERS) == pytest.approx(2 * hit / (2 * hit + miss + false))


def test_correlations_against_scipy_and_numpy():
    truth = RANDOM.normal(size=300)
    found = truth + RANDOM.normal(size=300)
    figures = TASKS["stsb"].figures(truth.tolist(), found.tolist())
    assert figures["pearson"] == pytest.approx(np.corrcoef(truth, found)[0, 1])
    assert figures["spearman"] == pytest.approx(stats.spearmanr(truth, found).statistic)
    assert figures["score"] == pytest.approx((figures["pearson"] + figures["spearman"]) / 2)


@pytest.mark.parametrize("name", ["matthews", "f1", "pearson", "spearman"])
def test_constant_predictions_score_zero_not_nan(name):
    assert METRICS[name](np.array([0, 1, 1, 0.0]), np.zeros(4)) == 0.0


def test_several_sets_keep_their_names_and_share_a_score():
    sets = {"matched": {"accuracy": 0.8, "score": 0.8}, "mismatched": {"accuracy": 0.6, "score": 0.6}}
    flat = figures_of_sets(sets)
    assert flat == {"accuracy_matched": 0.8, "accuracy_mismatched": 0.6, "score": pytest.approx(0.7)}
    assert figures_of_sets({"dev": sets["matched"]}) == sets["matched"]


# --- reliability ---------------------------------------------------------------------------------------


def test_calibration_error_by_its_definition_whatever_the_order_or_the_parts():
    """Guo et al. 2017, equation 3: intervals (m−1)/M to m/M, closed above."""
    draw = np.random.default_rng(1)
    chances = np.concatenate([draw.random(500), np.arange(16) / 15, [1.0]])
    right = draw.random(len(chances)) < chances**2
    expected = 0.0
    for low, high in zip(np.arange(15) / 15, np.arange(1, 16) / 15, strict=True):
        inside = (chances > low) & (chances <= high) | ((low == 0) & (chances == 0))
        if inside.any():
            gap = abs(right[inside].mean() - chances[inside].mean())
            expected += inside.sum() / len(chances) * gap
    assert expected > 0.05
    whole = reliability(chances, right)
    assert calibration_error(whole) == pytest.approx(expected)
    parts = [reliability(chances[part], right[part]) for part in (slice(0, 100), slice(100, None))]
    assert np.sum(parts, axis=0) == pytest.approx(np.array(whole))


def test_what_comes_true_as_often_as_it_is_told_is_calibrated_and_certainty_of_errors_is_not():
    chances = np.repeat([0.25, 0.75], 400)
    right = np.tile([True, False, False, False], 100), np.tile([True, True, True, False], 100)
    assert calibration_error(reliability(chances, np.concatenate(right))) == pytest.approx(0)
    assert calibration_error(reliability(np.ones(9), np.zeros(9, bool))) == 1
