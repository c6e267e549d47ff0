"""Rows that hold several texts with a score each: the choices of a question, the documents of a query.

Shapes: B rows of a batch, K texts of the row with most, N tokens of the longest.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nystromformer.data.layout import Batch
from nystromformer.tasks.rows import Encoded, padded
from nystromformer.tasks.task import Outputs, Task

NO_SCORE = torch.finfo(torch.float32).min
"""The score of what only fills a row up."""


def collate_lists(encoded: Encoded, rows: Sequence[int], pad_token_id: int) -> Batch:
    """input_ids, attention_mask, (token_type_ids) (B, K, N); `choices` (B,), how many texts are real.

    Rows of fewer texts are filled up with copies of their first.
    """
    counts = [len(encoded.input_ids[row]) for row in rows]
    most = max(counts)

    def flat(column: list[Any]) -> list[list[int]]:
        return [
            tokens
            for row, count in zip(rows, counts, strict=True)
            for tokens in column[row] + column[row][:1] * (most - count)
        ]

    types = encoded.token_type_ids
    listed = replace(
        encoded,
        input_ids=flat(encoded.input_ids),
        token_type_ids=None if types is None else flat(types),
    )
    batch = padded(listed, range(len(rows) * most), pad_token_id)
    batch = {name: column.unflatten(0, (len(rows), most)) for name, column in batch.items()}
    return {**batch, "choices": torch.tensor(counts)}


class ListTask(Task):
    """A score for each text of a row."""

    num_labels: ClassVar[int] = 1
    """One column: a score of each text."""

    def padded(self, encoded: Encoded, rows: Sequence[int], pad_token_id: int) -> Batch:
        return collate_lists(encoded, rows, pad_token_id)

    @abstractmethod
    def logits(self, model: nn.Module, texts: Batch) -> Tensor:
        """(B, K), the copies that fill a row up among them."""

    def scores(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B, K) in float32; those of the copies that fill a row up are as low as can be."""
        texts = {name: column for name, column in batch.items() if name not in ("choices", "labels")}
        found = self.logits(model, texts).float()
        return found.masked_fill(~is_real(found, batch["choices"]), NO_SCORE)

    def outputs(self, model: PreTrainedModel, batch: Batch) -> Outputs:
        """A row's scores, of as many texts as it has."""
        found = self.scores(model, batch).cpu().numpy()
        return [row[:count] for row, count in zip(found, batch["choices"].tolist(), strict=True)]


def is_real(scores: Tensor, counts: Tensor) -> Tensor:
    """Which of (B, K) scores are of a row's own texts."""
    return torch.arange(scores.shape[1], device=scores.device) < counts[:, None]
