"""Models on the same held-out examples: each figure with its interval, and how far one is above another."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nystromformer.intervals import Interval, bootstrap, in_percent, mcnemar, middle_of, proportion_interval
from nystromformer.reproduce.runs import Seeds
from nystromformer.tables import percent
from nystromformer.tasks.scores import METRICS

INTERVALS = (
    "In brackets a 95 % interval over examples and seeds (bootstrap); Wilson's, over examples alone, of "
    "accuracies whose predictions an earlier version did not keep."
)
TESTS = (
    "Differences are of the means over the seeds, on the same examples, with their 95 % interval (bootstrap, "
    "paired by example and seed), and of accuracies McNemar's exact p, the median of the seeds."
)
_NOT_KEPT = "predictions not kept"


def compared(models: Mapping[str, Seeds]) -> dict[str, dict[str, Any]]:
    """Of each model its held-out figures, one value a seed, their intervals and the time of all; and of each
    but the first, how its predictions differ from the first one's."""
    names = [name for name in next(iter(models.values()))[0]["dev"] if name not in ("loss", "score")]
    found: dict[str, dict[str, Any]] = {
        title: {
            "figures": {name: [result["dev"][name] for result in seeds] for name in names},
            "intervals": {name: _wilson(seeds, name) for name in names if name.startswith("accuracy")},
            "seconds": sum(result["seconds"] for result in seeds),
            "above": {},
        }
        for title, seeds in models.items()
    }
    first, *others = models
    for name in names:
        means = {title: statistics.fmean(found[title]["figures"][name]) for title in models}
        for title in others:
            found[title]["above"][name] = {"difference": means[title] - means[first]}
        samples = _answers(list(models.values()), name)
        if samples is None:
            continue
        metric, labels, predictions = samples
        drawn = bootstrap(METRICS[metric], labels, predictions)
        for number, title in enumerate(models):
            found[title]["intervals"][name] = middle_of(drawn[:, number])
            if number:
                above = found[title]["above"][name]
                above["interval"] = middle_of(drawn[:, number] - drawn[:, 0])
                if metric == "accuracy":
                    pairs = zip(predictions[0], predictions[number], strict=True)
                    above["mcnemar"] = [mcnemar(one == labels, other == labels) for one, other in pairs]
    return found


def _answers(models: list[Seeds], name: str) -> tuple[str, NDArray[Any], list[NDArray[Any]]] | None:
    """The metric of a figure, its labels and each model's predictions, (seeds, examples); None where a seed
    kept none, or where they are of other examples."""
    kept = [[result["answers"] for result in seeds] for seeds in models]
    if not all(each for seeds in kept for each in seeds):
        return None
    parts = [part for part in kept[0][0] if name.endswith(f"_{part}")] or list(kept[0][0])[:1]
    metric = name.removesuffix(f"_{parts[0]}")
    of_seeds = [[each[parts[0]] for each in seeds] for seeds in kept]
    labels = of_seeds[0][0][0]
    same = all(np.array_equal(labels, truth) for seeds in of_seeds for truth, _ in seeds)
    if metric not in METRICS or not same or len({len(seeds) for seeds in kept}) > 1:
        return None
    return metric, labels, [np.stack([answers for _, answers in seeds]) for seeds in of_seeds]


def _wilson(seeds: Seeds, name: str) -> Interval:
    """Of the median accuracy, over the examples of its held-out set."""
    examples = examples_of(seeds[0])
    held_out = sum(count for part, count in examples.items() if part != "train")
    count = examples.get(name.removeprefix("accuracy_"), held_out)
    return proportion_interval(statistics.median(result["dev"][name] for result in seeds), count)


def in_words(found: Mapping[str, Any], name: str) -> str:
    """A figure of the seeds with its interval."""
    interval = found["intervals"].get(name)
    return percent(found["figures"][name]) + (f" {in_percent(interval)}" if interval else "")


def difference_in_words(found: Mapping[str, Any], name: str) -> str:
    """How far a model's figure is above the first one's, and whether that is more than chance."""
    above = found["above"][name]
    p = f", p = {statistics.median(above['mcnemar']):.2g}" if "mcnemar" in above else ""
    interval = f"{in_percent(above['interval'])}{p}" if "interval" in above else f"({_NOT_KEPT})"
    return f"{100 * above['difference']:+.1f} {interval}"


def examples_of(result: Mapping[str, Any]) -> dict[str, int]:
    """How many examples each set of a seed has."""
    return {name: part["examples"] for name, part in result["data"].items() if isinstance(part, dict)}
