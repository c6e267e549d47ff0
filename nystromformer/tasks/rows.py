"""Texts as rows of token ids, and several texts of an example as the rows of one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from nystromformer.data.layout import Batch
from nystromformer.tasks.task import Encoded

_AT_ONCE = 1000
"""Texts tokenized in one call: enough for the tokenizer's threads, little for the memory."""


def rows_of_texts(
    columns: Sequence[Sequence[str]],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    labels: list[Any] | None = None,
) -> Encoded:
    """`[CLS] A [SEP]`, or of two columns `[CLS] A [SEP] B [SEP]`; of a pair, the longer text is cut first."""
    ids: list[list[int]] = []
    types: list[list[int]] = []
    full: list[int] = []
    for start in range(0, len(columns[0]), _AT_ONCE):
        part = [list(column[start : start + _AT_ONCE]) for column in columns]
        whole = tokenizer(*part, truncation=False, verbose=False)
        full.extend(len(row) for row in whole["input_ids"])
        cut = whole
        if max(full[start:]) > max_length:
            cut = tokenizer(*part, truncation="longest_first", max_length=max_length, verbose=False)
        ids.extend(cut["input_ids"])
        types.extend(cut.get("token_type_ids", []))
    lengths = np.array([len(row) for row in ids], np.int64)
    return Encoded(ids, types or None, labels, lengths, np.array(full, np.int64))


def texts_of_rows(encoded: Encoded, rows: Sequence[int]) -> Encoded:
    """Each text of some rows as a row of its own."""
    ids = [text for row in rows for text in encoded.input_ids[row]]
    types = encoded.token_type_ids
    lengths = np.array([len(text) for text in ids], np.int64)
    return Encoded(
        ids,
        None if types is None else [text for row in rows for text in types[row]],
        None,
        lengths,
        lengths,
        widths=encoded.widths,
    )


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
