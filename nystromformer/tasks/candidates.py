"""What a reranker learns from: for each query its relevant documents, and others easily taken for them.

An example's texts are the query, then its documents; its label are their grades, `Graded`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nystromformer.data.documents import text_hash
from nystromformer.errors import UserError
from nystromformer.settings.finetune import TaskDataSettings
from nystromformer.tasks.collection import Collection, Judgements
from nystromformer.tasks.ranking import Bm25, Run, queries_with_relevant, top
from nystromformer.tasks.row_files import Asked
from nystromformer.tasks.task import Examples

_AT_ONCE = 4096
_POOL = 100
"""Documents of which a query's others are drawn."""
_HELD_OUT = 32
"""Most documents of a held-out query of a folder."""


class Graded(NamedTuple):
    """The label of an example."""

    query: str
    """The lists of one query, such as pairs, are measured as one."""
    grades: list[float]
    """Of its documents, in their order; above 0 a document is relevant."""


class JudgedFolder:
    """The judged queries of a split of a collection; making one looks whether judgements are there."""

    def __init__(self, asked: Asked, data: TaskDataSettings) -> None:
        self.path = asked.path
        self.skipped: list[str] = []
        self._mined = data.mined
        self._collection = Collection(self.path, asked.setting, data.one_is_best)
        self._split = asked.setting.removeprefix("data.")
        self._collection.judged_by(self._split)

    def examples(self) -> Examples:
        """A query an example: its relevant documents, and after them those of its pool.

        Raises:
            UserError: the collection does not fit together.
        """
        queries, judgements = self._collection.queries(), self._collection.judgements(self._split)
        ids = self._collection.names()
        self._collection.check(judgements, queries, set(ids), self._split)
        asked = {name: queries[name] for name in queries_with_relevant(judgements)}
        documents = {
            name: [*_relevant(judgements, name), *pool]
            for name, pool in self._pools(asked, judgements, ids).items()
        }
        texts = self._collection.texts_of({one for found in documents.values() for one in found})
        return Examples(
            [(asked[name], *(texts[one] for one in found)) for name, found in documents.items()],
            [
                Graded(asked[name], [max(judgements[name].get(one, 0), 0) for one in found])
                for name, found in documents.items()
            ],
            list(documents),
        )

    def _pools(self, asked: dict[str, str], judgements: Judgements, ids: list[str]) -> dict[str, list[str]]:
        """Documents that are not relevant for each query: what BM25 finds first, then random ones."""
        found: Run = {}
        if self._mined == "bm25":
            most = max(len(_relevant(judgements, name)) for name in asked)
            found = top(Bm25(self._collection.documents(_AT_ONCE)).rank(asked, _POOL + most), _POOL + most)
        pools = {}
        for name, text in asked.items():
            relevant = set(_relevant(judgements, name))
            draw = np.random.default_rng(text_hash(text))
            count = min(_POOL + len(relevant) + len(found.get(name, ())), len(ids))
            others = [ids[number] for number in draw.choice(len(ids), count, replace=False)]
            in_order = dict.fromkeys([*found.get(name, ()), *others])
            pools[name] = [one for one in in_order if one not in relevant][:_POOL]
        return pools


def _relevant(judgements: Judgements, query: str) -> list[str]:
    return [name for name, grade in judgements[query].items() if grade > 0]


def has_split(path: str, split: str, data: TaskDataSettings) -> bool:
    """Whether a folder has judgements of a split beside those of training."""
    collection = Collection(Path(path).expanduser(), "data.train", data.one_is_best)
    try:
        return collection.judged_by(split) != collection.judged_by("train")
    except UserError:
        return False


def training_lists(examples: Examples, most: int) -> Examples:
    """Lists of at most so many documents to learn from.

    A query with more documents makes one for each relevant document, with others of lower grade that are
    drawn from the query's own: always the same ones.
    """
    lists = Examples([], [], [])
    for (query, *documents), label, name in zip(
        examples.texts, examples.labels or [], examples.ids, strict=True
    ):
        for chosen in _lists(query, label.grades, most):
            lists.texts.append((query, *(documents[number] for number in chosen)))
            assert lists.labels is not None
            lists.labels.append(Graded(query, [label.grades[number] for number in chosen]))
            lists.ids.append(name)
    return lists


def _lists(query: str, grades: list[float], most: int) -> Iterator[list[int]]:
    """The numbers of each list's documents."""
    if len(grades) <= most:
        yield list(range(len(grades)))
        return
    draw = np.random.default_rng(text_hash(query))
    for number, grade in enumerate(grades):
        lower = [other for other, its in enumerate(grades) if its < grade]
        if grade > 0 and lower:
            yield [number, *draw.permutation(lower)[: most - 1].tolist()]


def held_out_lists(examples: Examples) -> Examples:
    """The relevant documents of each query, and the first of its pool."""
    labels = examples.labels or []
    kept = [max(sum(grade > 0 for grade in label.grades), _HELD_OUT) for label in labels]
    return Examples(
        [texts[: count + 1] for texts, count in zip(examples.texts, kept, strict=True)],
        [Graded(label.query, label.grades[:count]) for label, count in zip(labels, kept, strict=True)],
        examples.ids,
    )
