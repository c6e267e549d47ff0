"""How well a document answers a query: one score a pair, learned from lists of documents of a query.

A row is a query with its documents, `[CLS] query [SEP] document [SEP]` for each. Files are tables or JSON
lines, in one of these layouts; or data.train is a folder with queries and judgements, see collection.py:

    query, document, label                      a pair; the rows of one query make a list
    query, documents, labels                    a list of documents, and of their grades
    query, positive, negative                   one text each or a list of them; also negative_1, negative_2 …

Shapes: B rows of a batch, K documents of the row with most, N tokens of the longest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import expit
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nystromformer.data.documents import clean, text_hash
from nystromformer.data.layout import Batch
from nystromformer.errors import UserError
from nystromformer.model import NystromformerForSequenceClassification
from nystromformer.settings.finetune import TaskDataSettings, TaskSettings
from nystromformer.tasks.collection import Collection, Judgements
from nystromformer.tasks.lists import ListTask, is_real
from nystromformer.tasks.ranking import (
    Bm25,
    Run,
    check_retrieval_packages,
    judged_figures,
    queries_with_relevant,
    top,
)
from nystromformer.tasks.reading import number_in, own_splits
from nystromformer.tasks.row_files import Asked, Fault, Row, Unusable
from nystromformer.tasks.rows import Encoded, in_lists, rows_of_texts
from nystromformer.tasks.table_files import TableFile
from nystromformer.tasks.task import Answered, Examples, Found, Outputs, Splits

_QUERIES = ("query", "question", "anchor")
_DOCUMENTS = ("document", "passage", "text", "documents", "passages")
_LABELS = ("label", "grade", "labels", "grades")
_POSITIVE = re.compile(r"positives?")
_NEGATIVE = re.compile(r"negatives?(_\d+)?")
_LAYOUT = "write query and document, query and documents, or query, positive and negative"
_FIGURES = ("ndcg@10", "mrr@10")


@dataclass(frozen=True)
class RerankTask(ListTask):
    """The texts of an example are the query and its documents, its label is `Graded`."""

    goal: str = "listwise"
    """Its loss."""
    best: float = 1.0
    """The highest grade of the training examples."""

    head: ClassVar[type[PreTrainedModel]] = NystromformerForSequenceClassification
    pipeline: ClassVar[str] = "text-ranking"
    layouts: ClassVar[str] = "FILE (.jsonl, .csv or .tsv), data.train=FOLDER in BEIR's layout"
    choosable: ClassVar[tuple[str, ...]] = _FIGURES

    # --- settings and data ---------------------------------------------------------------------------

    @classmethod
    def load(cls, settings: TaskSettings, data: TaskDataSettings) -> Splits:
        check_retrieval_packages(f"task={settings.name}")
        task = cls(
            settings.name, "ranking of documents", metrics=_FIGURES, score=(settings.metric,),
            goal=settings.loss or "listwise",
        )  # fmt: skip
        if _is_folder(data.train) and data.dev is None and has_split(str(data.train), "dev", data):
            data = replace(data, dev=data.train)

        def opened(asked: Asked) -> TableFile | JudgedFolder:
            return JudgedFolder(asked, data) if asked.path.is_dir() else task.opened(asked)

        splits = own_splits(task, data, opened=opened, read=task.whole)
        best = max((max(label.grades) for label in splits.train.labels or []), default=0)
        splits.task = replace(task, best=max(best, 0))
        splits.train = training_lists(splits.train, data.candidates)
        if _is_folder(data.dev or data.train):
            splits.dev = {name: held_out_lists(part) for name, part in splits.dev.items()}
        return splits

    def opened(self, asked: Asked) -> TableFile:
        return TableFile(asked, ())

    def is_labelled(self, file: TableFile) -> bool:
        return any(map(_is_labelled, file.rows()))

    def rows(self, file: TableFile, *, labelled: bool) -> Iterator[Found | Fault]:
        def found(row: Row, number: int) -> Iterator[Found]:
            query, documents, grades = _example(row, labelled=labelled)
            yield (query, *documents), Graded(query, grades) if labelled else None, row.name("id", number)

        return file.usable(file.rows_and_faults(), found)

    def whole(self, file: TableFile | JudgedFolder) -> Examples:
        """A query an example, with all its documents."""
        if isinstance(file, JudgedFolder):
            return file.examples()
        pairs = Examples.of(self.rows(file, labelled=True))
        texts: dict[str, list[str]] = {}
        grades: dict[str, list[float]] = {}
        for (query, *documents), label in zip(pairs.texts, pairs.labels or [], strict=True):
            texts.setdefault(query, []).extend(documents)
            grades.setdefault(query, []).extend(label.grades)
        return Examples(
            [(query, *documents) for query, documents in texts.items()],
            [Graded(query, found) for query, found in grades.items()],
            [str(number) for number in range(len(texts))],
        )

    def check(self, splits: Splits) -> None:
        if not any(len({*label.grades}) > 1 for label in splits.train.labels or []) or not self.best:
            raise UserError(
                f"{splits.origin}: no query has both a relevant document, of a grade above 0, and another to "
                "be told from it: bring some"
            )

    def balance(self, labels: Sequence[Graded]) -> str:
        grades = [grade for label in labels for grade in label.grades]
        share = np.mean(np.array(grades) > 0)
        return f"{len(grades):,} documents, {share:.1%} relevant, grades {min(grades):g} to {max(grades):g}"

    # --- rows and model ------------------------------------------------------------------------------

    def encode(self, examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded:
        """Of a pair, the longer text is cut first."""
        queries = [query for query, *documents in examples.texts for _ in documents]
        documents = [document for _, *documents in examples.texts for document in documents]
        flat = rows_of_texts((queries, documents), tokenizer, max_length)
        return in_lists(flat, [len(texts) - 1 for texts in examples.texts], examples.labels)

    def targets(self, labels: Sequence[Any], batch: Batch) -> Tensor:
        """(B, K) float32, 0 where a row has no more documents."""
        grades = torch.zeros(batch["input_ids"].shape[:2])
        for row, label in enumerate(labels):
            grades[row, : len(label.grades)] = torch.tensor(label.grades)
        return grades

    def logits(self, model: nn.Module, texts: Batch) -> Tensor:
        flat = {name: column.flatten(0, 1) for name, column in texts.items()}
        return model(**flat).logits.view(texts["input_ids"].shape[:2])

    def items(self, batch: Batch) -> int:
        """Lists; documents where each has a loss of its own."""
        return len(batch["choices"]) if self.goal == "listwise" else int(batch["choices"].sum())

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        losses = self._losses(self.scores(model, batch), batch["labels"], batch["choices"])
        return losses.mean() if self.goal == "listwise" else losses.sum() / batch["choices"].sum()

    def _losses(self, scores: Tensor, grades: Tensor, counts: Tensor) -> Tensor:
        """The losses of (B, K) scores, in float32: (B,) of lists, or (B, K) of documents, 0 where is none."""
        if self.goal == "listwise":
            gains = grades.clamp(min=0)
            # A list without a relevant document asks for nothing.
            shares = gains / gains.sum(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
            return -(shares * scores.log_softmax(1)).sum(1)
        # Chosen by a mask, a GPU would be waited for to know how many they are.
        absent = ~is_real(scores, counts)
        scores = scores.masked_fill(absent, 0)
        if self.goal == "regression":
            return (scores - grades).square().masked_fill(absent, 0)
        shares = grades.clamp(min=0) / self.best
        found = F.binary_cross_entropy_with_logits(scores, shares.clamp(max=1), reduction="none")
        return found.masked_fill(absent, 0)

    # --- predictions ---------------------------------------------------------------------------------

    def predict(self, encoded: Encoded, outputs: Outputs) -> list[list[float]]:
        """A score of each document, the higher the better: with `pointwise` a probability, else as it is."""
        shown = expit if self.goal == "pointwise" else np.asarray
        return [shown(np.asarray(row, np.float64)).tolist() for row in outputs]

    def losses(self, encoded: Encoded, outputs: Outputs) -> Tensor:
        return torch.cat(
            [
                self._losses(
                    torch.from_numpy(np.asarray(scores))[None],
                    torch.tensor([label.grades], dtype=torch.float32),
                    torch.tensor([len(scores)]),
                ).flatten()
                for scores, label in zip(outputs, encoded.labels or [], strict=True)
            ]
        )

    def figures(self, labels: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
        """trec_eval's of the queries that have a relevant document, over the documents in their lists."""
        judgements: dict[str, dict[str, int]] = {}
        run: dict[str, dict[str, float]] = {}
        for (query, grades), scores in zip(labels, predictions, strict=True):
            judged, found = judgements.setdefault(query, {}), run.setdefault(query, {})
            for grade, score in zip(grades, scores, strict=True):
                name = str(len(judged))
                judged[name], found[name] = round(grade), score
        figures = judged_figures(run, judgements)
        means = {name: float(figures[name].mean()) if len(figures[name]) else 0.0 for name in _FIGURES}
        return self.with_score(means)

    def answers(self, found: Answered) -> Iterator[dict[str, Any]]:
        """The score of a pair, or those of a list."""
        for scores in found.predictions:
            rounded = [float(f"{score:.6g}") for score in scores]
            yield {"prediction": rounded[0] if len(rounded) == 1 else rounded}

    def usage(self) -> str:
        return """import torch
from sentence_transformers import CrossEncoder  # pip install 'nystromformer[retrieval]'

ranker = CrossEncoder("PATH OF THIS FOLDER", activation_fn=torch.nn.Identity())
print(ranker.rank("a query", ["a document", "another document"]))"""


# --- files --------------------------------------------------------------------------------------------


def _is_folder(path: str | None) -> bool:
    return path is not None and Path(path).expanduser().is_dir()


def _is_labelled(row: Row) -> bool:
    cells = row.cells
    return any(cells.get(name) not in (None, "") for name in _LABELS) or any(map(_POSITIVE.fullmatch, cells))


def _example(row: Row, *, labelled: bool) -> tuple[str, list[str], list[float]]:
    """A query, its documents, and, where asked for, their grades; raises Unusable."""
    query = row.first(_QUERIES)
    if not query:
        raise Unusable(f"has no query: {_LAYOUT}")
    positive, negative = (
        [text for name in row.cells if pattern.fullmatch(name) for text in _texts(row, name)]
        for pattern in (_POSITIVE, _NEGATIVE)
    )
    if positive:
        return query, positive + negative, [1.0] * len(positive) + [0.0] * len(negative)
    documents: list[str] = next((found for name in _DOCUMENTS if (found := _texts(row, name))), [])
    if not documents:
        raise Unusable(f"has no document: {_LAYOUT}")
    if not labelled:
        return query, documents, []
    column = next((name for name in _LABELS if row.cells.get(name) not in (None, "")), None)
    if column is None:
        raise Unusable(f"has no label ({', '.join(_LABELS)})")
    value = row.cells[column]
    grades = [
        number_in(clean(str(grade)), column) for grade in (value if isinstance(value, list) else [value])
    ]
    if len(grades) != len(documents):
        raise Unusable(f"is malformed ({len(grades)} labels of {len(documents)} documents)")
    return query, documents, grades


def _texts(row: Row, name: str) -> list[str]:
    """The text in a column, or the texts of a list there."""
    value = row.cells.get(name)
    if not isinstance(value, list):
        return [text] if (text := row.text(name)) else []
    if any(isinstance(text, list | dict | bool) or text is None for text in value):
        raise Unusable(f"is malformed ({name!r} holds what is no text)")
    return [clean(str(text)) for text in value]


# --- what is learned of a folder: relevant documents, and others easily taken for them ----------------


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
    rows = zip(examples.texts, examples.labels or [], examples.ids, strict=True)
    return Examples.of(
        (
            (query, *(documents[number] for number in chosen)),
            Graded(query, [label.grades[number] for number in chosen]),
            name,
        )
        for (query, *documents), label, name in rows
        for chosen in _lists(query, label.grades, most)
    )


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
