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
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import expit
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nystromformer.data.documents import clean
from nystromformer.data.layout import Batch
from nystromformer.errors import UserError
from nystromformer.model import NystromformerForSequenceClassification
from nystromformer.settings.finetune import EvaluateSettings, FinetuneSettings, TaskDataSettings, TaskSettings
from nystromformer.tasks.candidates import Graded, JudgedFolder, has_split, held_out_lists, training_lists
from nystromformer.tasks.lists import collate_lists, is_real, real_scores
from nystromformer.tasks.ranking import check_retrieval_packages, judged_figures
from nystromformer.tasks.reading import Found, gathered, in_parts, number_in, own_splits, own_table
from nystromformer.tasks.row_files import Fault, Row, Unusable
from nystromformer.tasks.rows import rows_of_texts
from nystromformer.tasks.scores import with_score
from nystromformer.tasks.table_files import TableFile
from nystromformer.tasks.task import Encoded, Examples, Outputs, Splits, Task

_QUERIES = ("query", "question", "anchor")
_DOCUMENTS = ("document", "passage", "text", "documents", "passages")
_LABELS = ("label", "grade", "labels", "grades")
_POSITIVE = re.compile(r"positives?")
_NEGATIVE = re.compile(r"negatives?(_\d+)?")
_LAYOUT = "write query and document, query and documents, or query, positive and negative"
_FIGURES = ("ndcg@10", "mrr@10")


@dataclass(frozen=True)
class RerankTask(Task):
    """The texts of an example are the query and its documents, its label is `Graded`."""

    goal: str = "listwise"
    """Its loss."""
    best: float = 1.0
    """The highest grade of the training examples."""

    head: ClassVar[type[PreTrainedModel]] = NystromformerForSequenceClassification
    pipeline: ClassVar[str] = "text-ranking"

    # --- settings and data ---------------------------------------------------------------------------

    @classmethod
    def complaints(cls, settings: FinetuneSettings) -> Iterator[str]:
        task, data = settings.task, settings.data
        if not data.has_train:
            yield (
                f"data.train is empty: with task={task.name} write data.train=FILE (.jsonl, .csv or .tsv), "
                "data.train=FOLDER in BEIR's layout, or data.hub=NAME"
            )
        if task.metric not in _FIGURES:
            allowed = ", ".join(_FIGURES)
            yield f"task.metric={task.metric!r} does not fit task.kind=rerank: write one of {allowed}"

    @classmethod
    def load(cls, settings: TaskSettings, data: TaskDataSettings) -> Splits:
        check_retrieval_packages(f"task={settings.name}")
        task = cls(
            settings.name, "ranking of documents", metrics=_FIGURES, score=(settings.metric,),
            goal=settings.loss or "listwise",
        )  # fmt: skip
        if _is_folder(data.train) and data.dev is None and has_split(str(data.train), "dev", data):
            data = replace(data, dev=data.train)
        splits = own_splits(
            task,
            data,
            lambda path, setting: (
                JudgedFolder(path, setting, data) if _is_folder(path) else own_table(path, (), setting, data)
            ),
            _whole,
        )
        best = max((max(label.grades) for label in splits.train.labels or []), default=0)
        splits.task = replace(task, best=max(best, 0))
        splits.train = training_lists(splits.train, data.candidates)
        if _is_folder(data.dev or data.train):
            splits.dev = {name: held_out_lists(part) for name, part in splits.dev.items()}
        return splits

    def read(self, settings: EvaluateSettings, at_once: int) -> Iterator[Examples | Fault]:
        file = TableFile(
            Path(str(settings.file)).expanduser(), (), separator=settings.separator, quotes=settings.quotes,
            report=settings.reported,
        )  # fmt: skip
        labelled = settings.measured and any(map(_is_labelled, file.rows()))
        return in_parts(_usable(file, labelled=labelled), at_once, labelled=labelled)

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
        ends = np.cumsum([len(texts) - 1 for texts in examples.texts])
        begins = [0, *ends[:-1]]

        def listed(column: Any) -> list[Any]:
            return [column[begin:end] for begin, end in zip(begins, ends, strict=True)]

        return Encoded(
            listed(flat.input_ids),
            None if flat.token_type_ids is None else listed(flat.token_type_ids),
            examples.labels,
            np.array([max(row) for row in listed(flat.lengths)], np.int64),
            np.array([max(row) for row in listed(flat.full_lengths)], np.int64),
        )

    def collate(self, encoded: Encoded, rows: Sequence[int], pad_token_id: int, *, labelled: bool) -> Batch:
        """As `collate_lists`; labels (B, K) float32, 0 where a row has no more documents."""
        batch = collate_lists(encoded, rows, pad_token_id)
        if labelled:
            assert encoded.labels is not None
            labels = torch.zeros(batch["input_ids"].shape[:2])
            for place, row in enumerate(rows):
                grades = encoded.labels[row].grades
                labels[place, : len(grades)] = torch.tensor(grades)
            batch["labels"] = labels
        return batch

    @property
    def num_labels(self) -> int:
        return 1

    def items(self, batch: Batch) -> int:
        """Lists; documents where each has a loss of its own."""
        return len(batch["choices"]) if self.goal == "listwise" else int(batch["choices"].sum())

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        given = {name: column for name, column in batch.items() if name != "labels"}
        losses = self._losses(_scores(model, given), batch["labels"], batch["choices"])
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

    def outputs(self, model: PreTrainedModel, batch: Batch) -> Outputs:
        """A row's scores, of as many documents as it has."""
        scores = _scores(model, batch).cpu().numpy()
        return [row[:count] for row, count in zip(scores, batch["choices"].tolist(), strict=True)]

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
        return with_score(self, means)

    def answers(
        self, examples: Examples, predictions: Sequence[Any], outputs: Outputs
    ) -> Iterator[dict[str, Any]]:
        """The score of a pair, or those of a list."""
        for scores in predictions:
            rounded = [float(f"{score:.6g}") for score in scores]
            yield {"prediction": rounded[0] if len(rounded) == 1 else rounded}

    def usage(self) -> str:
        return """import torch
from sentence_transformers import CrossEncoder  # pip install 'nystromformer[retrieval]'

ranker = CrossEncoder("PATH OF THIS FOLDER", activation_fn=torch.nn.Identity())
print(ranker.rank("a query", ["a document", "another document"]))"""


def _scores(model: nn.Module, batch: Batch) -> Tensor:
    """(B, K) in float32."""
    flat = {name: column.flatten(0, 1) for name, column in batch.items() if name != "choices"}
    return real_scores(model(**flat).logits.view(batch["input_ids"].shape[:2]), batch["choices"])


# --- files --------------------------------------------------------------------------------------------


def _is_folder(path: str | None) -> bool:
    return path is not None and Path(path).expanduser().is_dir()


def _whole(file: TableFile | JudgedFolder) -> Examples:
    """A query an example, with all its documents."""
    if isinstance(file, JudgedFolder):
        return file.examples()
    texts: dict[str, list[str]] = {}
    grades: dict[str, list[float]] = {}
    for row in _usable(file, labelled=True):
        assert not isinstance(row, Fault), f"nobody asked to be told of {row}"
        (query, *documents), label, _ = row
        texts.setdefault(query, []).extend(documents)
        grades.setdefault(query, []).extend(label.grades)
    return gathered(
        (
            ((query, *documents), Graded(query, grades[query]), str(number))
            for number, (query, documents) in enumerate(texts.items())
        ),
        labelled=True,
    )


def _is_labelled(row: Row) -> bool:
    cells = row.cells
    return any(cells.get(name) not in (None, "") for name in _LABELS) or any(map(_POSITIVE.fullmatch, cells))


def _usable(file: TableFile, *, labelled: bool) -> Iterator[Found | Fault]:
    """Texts, label and name of each row; what becomes of one that cannot be used, the file knows."""
    number = -1
    for number, row in enumerate(file.rows_and_faults()):
        if isinstance(row, Fault):
            yield row
            continue
        try:
            query, documents, grades = _example(row, labelled=labelled)
        except Unusable as error:
            yield from file.reject(row, str(error))
            continue
        name = row.cells.get("id")
        label = Graded(query, grades) if labelled else None
        yield (query, *documents), label, str(number) if name in (None, "") else str(name)


def _example(row: Row, *, labelled: bool) -> tuple[str, list[str], list[float]]:
    """A query, its documents, and, where asked for, their grades; raises Unusable."""
    query = next((text for name in _QUERIES if (text := row.text(name))), "")
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
