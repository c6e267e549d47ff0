"""Rows of token ids straight from a corpus, for what needs some text and no prepared folder."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from transformers import PreTrainedTokenizerBase

from nystromformer.data.corpora import Corpus, read_documents
from nystromformer.data.layout import Batch
from nystromformer.errors import UserError

SHARES = (1, 1, 2, 4)
"""Lengths of the rows, one after the other, as divisors of the longest: what is fitted to text has to serve
shorter rows too, which get more of exact attention."""

SHORTEST = 8
"""Tokens, special ones included, below which a corpus holds no row."""


def text_rows(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, length: int) -> Iterator[Batch]:
    """Batches of one row, without padding, of `length` tokens and of halves and quarters of it.

    A row begins with a document, or with what the row before left of one, and is filled up with the
    documents that follow; less than a row at a document's end is not used where a row came of it. Goes
    through the corpus once; a row that the corpus does not fill is given only where it is the first.

    Raises:
        UserError: there is no text.
    """
    filled = 0
    ids: list[int] = []
    for document in read_documents(corpus):
        ids += tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"]
        before = filled
        while len(ids) >= (wanted := length_of_row(filled, length) - 2):
            yield _batch(tokenizer, ids[:wanted])
            ids, filled = ids[wanted:], filled + 1
        if filled > before:
            ids = []
    if not filled:
        if len(ids) < SHORTEST:
            raise UserError("data: the corpus holds less than a row of text: name another")
        yield _batch(tokenizer, ids)


def length_of_row(number: int, longest: int) -> int:
    """Tokens of the row of that number, special ones included."""
    return max(longest // SHARES[number % len(SHARES)], SHORTEST)


def _batch(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> Batch:
    row = [tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]
    return {"input_ids": torch.tensor([row])}
