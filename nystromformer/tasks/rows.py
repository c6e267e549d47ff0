"""Texts as rows of token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

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
