"""Texts as rows of token ids, and several texts of an example as the rows of one batch.

Shapes: B rows of a batch, N tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from nystromformer.data.examples import Key
from nystromformer.data.layout import Batch

_AT_ONCE = 1000
"""Texts tokenized in one call: enough for the tokenizer's threads, little for the memory."""


@dataclass
class Encoded:
    """Examples as rows that a model reads; a kind that needs more of a row derives its own."""

    input_ids: list[Any]
    """Token ids of each row; a list of such lists where a row holds several texts."""
    token_type_ids: list[Any] | None
    """None where the tokenizer has no segments."""
    labels: list[Any] | None
    lengths: NDArray[np.int64]
    """Tokens of each row after the cut: rows of like length make a batch."""
    full_lengths: NDArray[np.int64]
    """Tokens of each before it."""
    widths: tuple[int, ...] = field(default=(), kw_only=True)
    """Ascending; a batch is padded to the next of them, so that shapes repeat; empty pads to the longest."""

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def examples(self) -> int:
        """How many examples the rows are of."""
        return len(self)

    def texts_of(self, row: int) -> int:
        """How many texts a row holds."""
        ids = self.input_ids[row]
        return len(ids) if ids and isinstance(ids[0], list) else 1

    def drawn(self, keys: Sequence[Key], seed: int) -> tuple[Encoded, list[int]]:
        """Where the rows (epoch, row) of a step are; what is drawn anew for each epoch is drawn here."""
        return self, [row for _, row in keys]

    @property
    def truncated(self) -> float:
        """Share of the rows that were cut."""
        return float((self.full_lengths > self.lengths).mean()) if len(self) else 0.0


def padded(encoded: Encoded, rows: Sequence[int], pad_token_id: int) -> Batch:
    """input_ids, attention_mask, (token_type_ids), all (B, N), N the longest row's tokens or a width."""
    longest = max(len(encoded.input_ids[row]) for row in rows)
    width = next((width for width in encoded.widths if width >= longest), longest)

    def column(source: list[list[int]], filling: int) -> Tensor:
        return torch.tensor([source[row] + [filling] * (width - len(source[row])) for row in rows])

    batch = {
        "input_ids": column(encoded.input_ids, pad_token_id),
        "attention_mask": torch.tensor(
            [[1] * len(encoded.input_ids[row]) + [0] * (width - len(encoded.input_ids[row])) for row in rows]
        ),
    }
    if encoded.token_type_ids is not None:
        batch["token_type_ids"] = column(encoded.token_type_ids, 0)
    return batch


def rows_of_texts(
    columns: Sequence[Sequence[str]],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    labels: list[Any] | None = None,
    cut_first: str = "longest_first",
) -> Encoded:
    """`[CLS] A [SEP]`, or of two columns `[CLS] A [SEP] B [SEP]`; of a pair, the longer text is cut first.

    Args:
        cut_first: `only_first` cuts the first text of a pair alone.
    """
    ids: list[list[int]] = []
    types: list[list[int]] = []
    full: list[int] = []
    for start in range(0, len(columns[0]), _AT_ONCE):
        part = [list(column[start : start + _AT_ONCE]) for column in columns]
        whole = tokenizer(*part, truncation=False, verbose=False)
        full.extend(len(row) for row in whole["input_ids"])
        cut = whole
        if max(full[start:]) > max_length:
            cut = tokenizer(*part, truncation=cut_first, max_length=max_length, verbose=False)
        ids.extend(cut["input_ids"])
        types.extend(cut.get("token_type_ids", []))
    lengths = np.array([len(row) for row in ids], np.int64)
    return Encoded(ids, types or None, labels, lengths, np.array(full, np.int64))


def in_lists(flat: Encoded, counts: Sequence[int], labels: list[Any] | None) -> Encoded:
    """Rows of one text each as rows of several, so many each."""
    ends = list(accumulate(counts))
    parts = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
    types = flat.token_type_ids
    return Encoded(
        [flat.input_ids[part] for part in parts],
        None if types is None else [types[part] for part in parts],
        labels,
        np.array([flat.lengths[part].max() for part in parts], np.int64),
        np.array([flat.full_lengths[part].max() for part in parts], np.int64),
    )


def texts_of_rows(encoded: Encoded, rows: Sequence[int]) -> Encoded:
    """Each text of some rows as a row of its own."""

    def texts(column: list[Any]) -> list[list[int]]:
        found = [column[row] for row in rows]
        return list(chain.from_iterable(found)) if found and isinstance(found[0][0], list) else found

    ids, types = texts(encoded.input_ids), encoded.token_type_ids
    lengths = np.array([len(text) for text in ids], np.int64)
    types = None if types is None else texts(types)
    return Encoded(ids, types, None, lengths, lengths, widths=encoded.widths)


def parts_of_like_length(lengths: NDArray[np.int64], at_once: int | None) -> list[slice]:
    """Rows, the longest first, in parts of at most `at_once`; without that in two, where padding is least."""
    count = len(lengths)
    if at_once is not None:
        return [slice(start, start + at_once) for start in range(0, count, at_once)]
    cuts = np.arange(count, 0, -1)  # of equals the first, which is one part
    widths = np.append(lengths, 0)[cuts]
    cut = int(cuts[(cuts * lengths[0] + (count - cuts) * widths).argmin()])
    return [slice(0, cut), slice(cut, count)] if cut < count else [slice(0, count)]


def whose(counts: Sequence[int]) -> Batch:
    """Which of the texts are anchors, candidates, and right ones; see `EmbedTask.collate`."""
    texts = torch.tensor(counts)
    anchors = texts.cumsum(0) - texts
    is_candidate = torch.ones(int(texts.sum()), dtype=torch.bool).index_fill_(0, anchors, False)
    return {
        "texts": texts,
        "anchors": anchors,
        "candidates": is_candidate.nonzero()[:, 0],
        "right": anchors - torch.arange(len(texts)),
    }
