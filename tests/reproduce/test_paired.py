"""Figures of models on the same examples: their intervals, and differences that are paired."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from nystromformer.intervals import mcnemar, proportion_interval
from nystromformer.reproduce.paired import compared, difference_in_words, in_words
from nystromformer.tasks.results import keep_answers, kept_answers

EXAMPLES = 120


def seeds_of(rights: list[float], *parts: str, kept: bool = True, seed: int = 0) -> list[dict]:
    """Seeds whose predictions are right with these chances, on held-out sets of the same labels."""
    labels = np.random.default_rng(9).integers(0, 2, EXAMPLES).astype(float)
    draw, found = np.random.default_rng(seed), []
    for right in rights:
        answers = {
            part: (labels, np.where(draw.random(EXAMPLES) < right, labels, 1 - labels))
            for part in parts or ("dev",)
        }
        figures: dict[str, float] = {}
        for part, (truth, predictions) in answers.items():
            end = f"_{part}" if len(answers) > 1 else ""
            figures |= {
                f"accuracy{end}": float(np.mean(truth == predictions)),
                f"f1{end}": float(f1_score(truth, predictions)),
            }
        data = {name: {"examples": EXAMPLES} for name in ("train", *answers)}
        found.append(
            {"dev": {**figures, "loss": 1.0, "score": 1.0}, "seconds": 3.0, "data": data,
             "answers": answers if kept else None}
        )  # fmt: skip
    return found


def test_every_figure_has_its_interval_and_the_second_model_its_difference():
    models = {"one": seeds_of([0.7, 0.72]), "other": seeds_of([0.9, 0.92], seed=1)}
    found = compared(models)
    for title, seeds in models.items():
        for name in ("accuracy", "f1"):
            values = found[title]["figures"][name]
            assert values == [seed["dev"][name] for seed in seeds]
            low, high = found[title]["intervals"][name]
            assert low < np.mean(values) < high
        assert found[title]["seconds"] == 6
    assert found["one"]["above"] == {}
    above = found["other"]["above"]
    for name in ("accuracy", "f1"):
        low, high = above[name]["interval"]
        assert 0 < low < above[name]["difference"] < high
    labels = models["one"][0]["answers"]["dev"][0]
    expected = [
        mcnemar(one["answers"]["dev"][1] == labels, other["answers"]["dev"][1] == labels)
        for one, other in zip(*models.values(), strict=True)
    ]
    assert above["accuracy"]["mcnemar"] == expected
    assert "mcnemar" not in above["f1"]
    words = difference_in_words(found["other"], "accuracy")
    assert words.startswith(f"{100 * above['accuracy']['difference']:+.1f} [")
    assert ", p = " in words
    assert in_words(found["one"], "f1").endswith("]")


def test_each_figure_of_several_sets_is_of_its_own_set():
    found = compared({"one": seeds_of([0.6], "matched", "mismatched")})["one"]
    assert found["intervals"].keys() == {
        "accuracy_matched", "f1_matched", "accuracy_mismatched", "f1_mismatched",
    }  # fmt: skip
    for name, (low, high) in found["intervals"].items():
        assert low <= found["figures"][name][0] <= high


@pytest.mark.parametrize("which", [0, 1])
def test_seeds_of_an_earlier_version_kept_no_predictions(which):
    kept = [True, True]
    kept[which] = False
    models = {name: seeds_of([0.8], kept=k) for name, k in zip(("one", "other"), kept, strict=True)}
    found = compared(models)
    accuracy = found["one"]["figures"]["accuracy"][0]
    assert found["one"]["intervals"] == {"accuracy": proportion_interval(accuracy, EXAMPLES)}
    assert difference_in_words(found["other"], "accuracy") == "+0.0 (predictions not kept)"
    assert "[" not in in_words(found["one"], "f1")


def test_other_examples_are_not_paired():
    other = seeds_of([0.8], seed=1)
    labels, predictions = other[0]["answers"]["dev"]
    other[0]["answers"]["dev"] = (1 - labels, predictions)
    found = compared({"one": seeds_of([0.8]), "other": other})
    assert "interval" not in found["other"]["above"]["accuracy"]


def test_answers_are_kept_where_they_are_numbers(tmp_path):
    result = {"learning_rate": 1e-4, "batch_size": 8, "seed": 2}
    folder = tmp_path / "rate0.0001_batch8/seed-2"
    folder.mkdir(parents=True)
    assert kept_answers(tmp_path, result) is None
    keep_answers(folder, {"dev": ([["a"], ["b"]], [["a"], ["a"]])})
    assert kept_answers(tmp_path, result) is None, "tags are no numbers"
    keep_answers(folder, {"dev": ([0, 1], [np.int64(1), np.int64(1)]), "more": ([0.5], [np.float32(0.25)])})
    found = kept_answers(tmp_path, result)
    assert {part: [each.tolist() for each in pair] for part, pair in found.items()} == {
        "dev": [[0, 1], [1, 1]], "more": [[0.5], [0.25]],
    }  # fmt: skip
    (folder / "held_out.npz").write_bytes(b"half")
    assert kept_answers(tmp_path, result) is None
