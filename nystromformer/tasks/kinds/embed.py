"""A vector for a text, so that like texts have like vectors: search, grouping, duplicates.

    pairs      an anchor and its passage, maybe wrong passages: each tells them from all others of the batch
    spans      documents alone: the two parts of one are a pair, cut anew in each epoch
    vectors    texts with another embedder's vectors, to be learned

Shapes: B examples of a batch, T their texts, P parts of like length, d numbers of a vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nystromformer.data.layout import Batch
from nystromformer.errors import UserError
from nystromformer.model import NystromformerConfig
from nystromformer.model.embedding import NystromformerForEmbedding, sentence_transformers_files
from nystromformer.settings.finetune import EvaluateSettings, FinetuneSettings, TaskDataSettings, TaskSettings
from nystromformer.tasks.contrast import (
    Pairs,
    agreement,
    contrastive,
    gathered,
    matched,
    matched_similarities,
    ranks,
)
from nystromformer.tasks.pair_files import Documents, documents, filled, pairs_in, read_vectors, texts_in
from nystromformer.tasks.reading import own_splits, usable_rows
from nystromformer.tasks.row_files import Asked, Fault, listed
from nystromformer.tasks.rows import (
    Encoded,
    in_lists,
    padded,
    parts_of_like_length,
    rows_of_texts,
    texts_of_rows,
    whose,
)
from nystromformer.tasks.table_files import TableFile
from nystromformer.tasks.task import Answered, Examples, Found, Outputs, Splits, Task

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_VECTORS = {"data.train": "data.vectors", "data.dev": "data.dev_vectors"}
_METRICS = {
    "contrastive": ("mrr", "accuracy"),
    "vectors": ("cosine", "pearson"),
    "similarities": ("pearson",),
}
"""The first chooses the best checkpoint."""
_MOST_COMPARED = 2000
"""Held-out texts whose similarities to each other are looked at."""


@dataclass(frozen=True)
class EmbedTask(Task):
    """Vectors of texts."""

    text: str = "text"
    """Name of the column with the text, or with a pair's anchor."""
    text_pair: str | None = None
    """Name of the column with its passage; none where there are no pairs."""
    negatives: tuple[str, ...] = ()
    """Names of columns with wrong passages."""
    goal: str = "contrastive"
    """What is learned: `contrastive`, or of a teacher its `vectors` or `similarities`."""
    temperature: float = 0.05
    symmetric: bool = False
    width: int | None = None
    """Numbers of a teacher's vector."""
    normalise: bool = True
    """Whether `predict` writes vectors of length 1."""

    head: ClassVar[type[PreTrainedModel]] = NystromformerForEmbedding
    told: ClassVar[tuple[str, ...]] = ("vector",)
    pipeline: ClassVar[str] = "sentence-similarity"
    layouts: ClassVar[str] = "FILE (.jsonl or .csv)"
    library: ClassVar[str] = "sentence-transformers"
    forgotten: ClassVar[str] = (
        "transformers refuses the folder, whose attention its own Nystromformer has not."
    )
    joint: ClassVar[bool] = True

    # --- settings and data ---------------------------------------------------------------------------

    @classmethod
    def complaints(cls, settings: FinetuneSettings) -> Iterator[str]:
        task, data = settings.task, settings.data
        yield from super().complaints(settings)
        for name in ("compile", "cuda_graphs"):
            if getattr(settings.training, name):
                repeats = f"task={task.name}, whose shapes never repeat"
                yield f"training.{name}=true is not for {repeats}: write false"
        if _goal(task, data) != "contrastive":
            yield from _complaints_of_teachers(data)
            return
        if data.vectors:
            yield "data.vectors is not for task.loss=contrastive: write task.loss=vectors, or null for it"
        if data.pairs == "spans":
            given = [name for name in ("text_pair", "negatives") if getattr(data, name)]
            yield from (f"data.{name} is not for data.pairs=spans: leave it empty" for name in given)
        elif not data.text_pair:
            yield (
                f"data.text_pair is empty: with task={task.name} write data.text_pair=COLUMN, or "
                "data.pairs=spans for documents alone, or data.vectors=FILE of another embedder"
            )
        if 1 in task.batch_sizes:
            yield "task.batch_sizes holds 1, and a pair is told from the others of its batch: write 2 or more"

    @classmethod
    def load(cls, settings: TaskSettings, data: TaskDataSettings) -> Splits:
        goal = _goal(settings, data)
        task = cls(
            settings.name, "embedding", metrics=_METRICS[goal], score=_METRICS[goal][:1], text=data.text,
            text_pair=data.text_pair, negatives=tuple(data.negatives), goal=goal,
            temperature=settings.temperature, symmetric=settings.symmetric,
        )  # fmt: skip
        given = {"data.train": data.vectors, "data.dev": data.dev_vectors}
        teachers = {name: read_vectors(path, _VECTORS[name]) for name, path in given.items() if path}
        if teachers:
            task = replace(task, width=teachers["data.train"].shape[1])

        def read(file: TableFile) -> Examples:
            if task.text_pair is not None:
                repeated = data.remove_repeated
                rows = pairs_in(file, task.text, task.text_pair, task.negatives, remove_repeated=repeated)
            elif goal == "contrastive":
                rows = texts_in(file, task.text, words=2)
            else:
                setting = file.asked.setting
                if (vectors := teachers.get(setting)) is None:
                    wanted = _VECTORS.get(setting)
                    raise UserError(
                        f"{setting} has no vectors of the other embedder: write "
                        + (f"{wanted}=FILE" if wanted else f"{setting}=null")
                    )
                rows = texts_in(file, task.text, vectors=vectors, given=_VECTORS[setting])
            return Examples.of(rows)

        return own_splits(task, data, read=read)

    def of_file(self, settings: EvaluateSettings) -> EmbedTask:
        return replace(self, text=settings.text or self.text, normalise=settings.normalise)

    def opened(self, asked: Asked) -> TableFile:
        if not asked.is_to_learn:
            return TableFile(asked, (self.text,))
        file = TableFile(asked, [name for name in (self.text, self.text_pair) if name])
        for name in self.negatives:  # a row may have none
            if not file.has(name):
                raise UserError(f"{file.path} has no column {name!r}: name one of {listed(file.columns)}")
        return file

    def rows(self, file: TableFile, *, labelled: bool) -> Iterator[Found | Fault]:
        """The texts of one column, without labels: each becomes a vector."""
        names = None if self.text == "id" else "id"
        return usable_rows(file, lambda row: (filled(row, self.text),), None, names)

    def check(self, splits: Splits) -> None:
        """Raise UserError where there is nothing to tell a passage from."""
        for name, part in {"training": splits.train, **splits.dev}.items():
            if self.goal != "vectors" and len(part) < 2:
                raise UserError(
                    f"{splits.origin}: one {name} example has no other to be compared with: bring more"
                )

    def balance(self, labels: Sequence[Any]) -> str:
        if self.goal != "contrastive":
            return f"vectors of {self.width}"
        share = sum(labels) / len(labels)
        return f"{share:.1%} of the passages begin with their anchor" + (
            ": data.remove_repeated=true leaves that out of them" if share > 0.05 else ""
        )

    # --- rows and model ------------------------------------------------------------------------------

    def encode(self, examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded:
        """`[CLS] text [SEP]` for each text, cut to length; of documents alone, all tokens."""
        labels = examples.labels
        if labels is not None and self.goal == "contrastive" and self.text_pair is None:
            return documents(examples, tokenizer, max_length)
        flat = rows_of_texts([list(chain.from_iterable(examples.texts))], tokenizer, max_length, labels)
        if labels is None or self.text_pair is None:
            return flat
        return in_lists(flat, [len(texts) for texts in examples.texts], labels)

    def collate(self, encoded: Encoded, rows: Sequence[int], pad_token_id: int, *, labelled: bool) -> Batch:
        """The texts in parts of like length, and which is whose.

            input_ids, attention_mask, (token_type_ids), input_ids.1 …   each part padded to its longest
            order (T,)        where each text is among the parts' rows, example after example

        Where an example has several texts:

            texts (B,)        how many: the anchor, its passage, negatives
            content (T,)      equal for equal texts
            anchors (B,), candidates (C,)     places in `order`
            right (B,)        place of the anchors' own passages among the candidates

        Where there is a teacher, and `labelled`:

            labels (B, d)     its vectors
        """
        return self._batch(encoded, rows, pad_token_id, labelled, None)

    def training_batch(
        self, encoded: Encoded, rows: Sequence[int], pad_token_id: int, at_once: int | None
    ) -> Batch:
        batch = self._batch(encoded, rows, pad_token_id, True, at_once)
        return batch if at_once is None else {**batch, "recompute": torch.ones(1)}

    def _batch(
        self, encoded: Encoded, rows: Sequence[int], pad_token_id: int, labelled: bool, at_once: int | None
    ) -> Batch:
        if isinstance(encoded, Documents):
            encoded, rows = encoded.drawn([(0, row) for row in rows], 0)
        several = bool(rows) and isinstance(encoded.input_ids[rows[0]][0], list)
        flat = texts_of_rows(encoded, rows)
        order = np.argsort(-flat.lengths, kind="stable")
        batch: Batch = {}
        for number, part in enumerate(parts_of_like_length(flat.lengths[order], at_once)):
            columns = padded(flat, order[part].tolist(), pad_token_id)
            batch |= {f"{name}.{number}" if number else name: x for name, x in columns.items()}
        batch["order"] = torch.from_numpy(np.argsort(order))
        if several:
            batch |= whose([len(encoded.input_ids[row]) for row in rows])
            batch["content"] = torch.tensor([hash(tuple(text)) for text in flat.input_ids])
        if labelled and self.width is not None:
            assert encoded.labels is not None
            batch["labels"] = torch.from_numpy(np.stack([encoded.labels[row] for row in rows])).float()
        return batch

    def configure(self, config: NystromformerConfig) -> None:
        super().configure(config)
        if self.goal == "vectors" and self.width != config.hidden_size:
            raise UserError(
                f"data.vectors holds vectors of {self.width} numbers, and the model's have "
                f"{config.hidden_size}: write task.loss=similarities, which learns how like the texts are"
            )

    def items(self, batch: Batch) -> int:
        return len(batch["anchors" if "anchors" in batch else "order"])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        vectors = _run(model, batch)
        with torch.autocast(vectors.device.type, enabled=False):  # a cosine in bf16 has two digits
            return self._losses(vectors, batch).mean()

    def _losses(self, vectors: Tensor, batch: Batch) -> Tensor:
        """Of each example, (B,), compared with those of all processes."""
        if self.goal == "vectors":
            return matched(vectors, batch["labels"])
        if self.goal == "similarities":
            everybody, first = gathered(vectors)
            teachers, _ = gathered(batch["labels"])
            return matched_similarities(vectors, everybody, teachers, first, self.temperature)
        pairs = _pairs(vectors, batch)
        losses = contrastive(pairs.among_all(), self.temperature)
        if self.symmetric:
            losses = (losses + contrastive(pairs.turned().among_all(), self.temperature)) / 2
        return losses

    def outputs(self, model: PreTrainedModel, batch: Batch) -> Outputs:
        """The vectors of each row, (texts, d); of a row of one text one vector, (d,)."""
        vectors = _run(model, batch, "embeddings" if self.normalise else "means").cpu().numpy()
        if "texts" not in batch:
            return list(vectors)
        return list(np.split(vectors, np.cumsum(batch["texts"].tolist())[:-1]))

    # --- predictions ---------------------------------------------------------------------------------

    def predict(self, encoded: Encoded, outputs: Outputs) -> list[Any]:
        """The vector of each text; of each pair, the rank of its passage among those of the whole set."""
        if encoded.labels is None or self.goal != "contrastive":
            return list(outputs)
        return ranks(self._of_set(encoded, outputs)).tolist()

    def losses(self, encoded: Encoded, outputs: Outputs) -> Tensor:
        if self.goal == "contrastive":
            return contrastive(self._of_set(encoded, outputs), self.temperature)
        vectors, teachers = (
            torch.from_numpy(np.stack([np.asarray(row) for row in rows])).float()
            for rows in (outputs, encoded.labels or [])
        )
        if self.goal == "vectors":
            return matched(vectors, teachers)
        vectors, teachers = vectors[:_MOST_COMPARED], teachers[:_MOST_COMPARED]
        return matched_similarities(vectors, vectors, teachers, 0, self.temperature)

    def _of_set(self, encoded: Encoded, outputs: Outputs) -> Pairs:
        """All pairs of a set, each told from the passages of all."""
        rows: Sequence[int] = range(len(encoded))
        if isinstance(encoded, Documents):
            encoded, rows = encoded.drawn([(0, row) for row in rows], 0)
        content = [hash(tuple(text)) for row in rows for text in encoded.input_ids[row]]
        batch = whose([len(encoded.input_ids[row]) for row in rows])
        return _pairs(torch.from_numpy(np.concatenate(outputs)), {**batch, "content": torch.tensor(content)})

    def figures(self, labels: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
        """Mean reciprocal rank and share of passages in first place; or likeness to the teacher."""
        if self.goal == "contrastive":
            places = np.asarray(predictions, np.float64)
            found = {"mrr": float((1 / places).mean()), "accuracy": float((places == 1).mean())}
            return self.with_score(found)
        ours, theirs = (
            F.normalize(torch.from_numpy(np.stack([np.asarray(x) for x in rows])).float(), dim=-1)
            for rows in (predictions, labels)
        )
        found = {"pearson": agreement(ours[:_MOST_COMPARED], theirs[:_MOST_COMPARED])}
        if self.goal == "vectors":
            found = {"cosine": float((ours * theirs).sum(-1).mean()), **found}
        return self.with_score(found)

    def answers(self, found: Answered) -> Iterator[dict[str, Any]]:
        """The vector, in nine digits, which is all of a float32."""
        return ({"vector": [float(f"{number:.9g}") for number in vector]} for vector in found.predictions)

    # --- the model's folder --------------------------------------------------------------------------

    def files(self, config: NystromformerConfig, max_length: int) -> dict[str, Any]:
        return sentence_transformers_files(config, max_length)

    def usage(self) -> str:
        return """from sentence_transformers import SentenceTransformer

model = SentenceTransformer("PATH OF THIS FOLDER")
vectors = model.encode(["a text", "another text"])
print(vectors @ vectors.T)"""


def _complaints_of_teachers(data: TaskDataSettings) -> Iterator[str]:
    if not data.vectors:
        yield "data.vectors is empty: write data.vectors=FILE (.npy or .parquet), or task.loss=contrastive"
    for name in ("text_pair", "negatives"):
        if getattr(data, name):
            yield f"data.{name} is not for vectors of another embedder, of one text each: leave it empty"
    if data.malformed_rows == "skip":
        yield "data.malformed_rows=skip would part data.vectors from their rows: write stop"


def _goal(task: TaskSettings, data: TaskDataSettings) -> str:
    return task.loss or ("vectors" if data.vectors else "contrastive")


def _run(model: nn.Module, batch: Batch, name: str = "embeddings") -> Tensor:
    """What the model makes of all parts of a batch, in the order of the texts."""
    pieces: dict[str, Batch] = {}
    for key, x in batch.items():
        column, _, number = key.partition(".")
        if column in _INPUTS:
            pieces.setdefault(number, {})[column] = x
    found = model(pieces=list(pieces.values()), recompute="recompute" in batch)
    return found[name][batch["order"]]


def _pairs(vectors: Tensor, batch: Batch) -> Pairs:
    content, anchors, candidates, right = (batch[k] for k in ("content", "anchors", "candidates", "right"))
    owner = torch.full_like(candidates, -1).index_copy_(0, right, content[anchors])
    return Pairs(vectors[anchors], vectors[candidates], right, content[anchors], content[candidates], owner)
