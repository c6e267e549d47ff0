"""Documents alone: two spans of one are a pair, cut anew in each epoch.

    document → cut at a word in its middle half → of each side as much as a row holds → [CLS] span [SEP]

What is drawn is a function of (seed, epoch, row).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from nystromformer.data.examples import Key
from nystromformer.data.stateless_random import Stream, below, position_bits, row_keys
from nystromformer.errors import UserError
from nystromformer.tasks.rows import Encoded
from nystromformer.tasks.task import Examples


@dataclass
class Documents(Encoded):
    """Whole documents; `input_ids` are theirs, of any length, without special tokens."""

    starts: list[list[int]]
    """Where words begin."""
    around: tuple[list[int], list[int]]
    """Token ids before and behind a span."""
    most: int
    """Tokens of a span with those around it."""

    def texts_of(self, row: int) -> int:
        return 2

    @property
    def truncated(self) -> float:
        """Share of the documents whose halves are longer than a span."""
        return float((self.full_lengths > 2 * self.most).mean())

    def drawn(self, keys: Sequence[Key], seed: int) -> tuple[Encoded, list[int]]:
        epochs, rows = np.array(keys, np.int64).T
        words = position_bits(row_keys(seed, epochs, rows), Stream.SPANS, 4)
        spans = [self._spans(row, drawn) for row, drawn in zip(rows.tolist(), words, strict=True)]
        lengths = np.array([max(map(len, pair)) for pair in spans], np.int64)
        return Encoded(spans, None, None, lengths, lengths, widths=self.widths), list(range(len(spans)))

    def _spans(self, row: int, words: NDArray[np.uint64]) -> list[list[int]]:
        """Both sides of the cut, in either order."""
        ids, starts = self.input_ids[row], self.starts[row]
        low = max(len(starts) // 4, 1)
        cut = low + int(below(words[:1], max(3 * len(starts) // 4 - low, 1))[0])
        first = self._window(ids[: starts[cut]], starts[:cut], words[1:2])
        second = self._window(ids, starts[cut:], words[2:3])
        return [second, first] if words[3] % 2 else [first, second]

    def _window(self, ids: list[int], starts: list[int], word: NDArray[np.uint64]) -> list[int]:
        """From one of the starts to the end, or to where a row is full."""
        before, behind = self.around
        room = self.most - len(before) - len(behind)
        filling = [start for start in starts if len(ids) - start >= room] or starts[:1]
        start = filling[int(below(word, len(filling))[0])]
        return [*before, *ids[start : start + room], *behind]


def documents(examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Documents:
    """The examples' texts, uncut; raises UserError for one that makes fewer than two tokens."""
    found = tokenizer(
        [text for (text,) in examples.texts], add_special_tokens=False, truncation=False, verbose=False
    )
    starts = []
    for number, ids in enumerate(found["input_ids"]):
        if len(ids) < 2:
            raise UserError(
                f"example {examples.ids[number]} has {len(ids)} tokens, which cannot be cut in two"
            )
        begins = _word_starts(found.word_ids(number)) if found.is_fast else []
        starts.append(begins if len(begins) > 1 else list(range(len(ids))))
    empty = tokenizer("")["input_ids"]
    border = empty.index(tokenizer.cls_token_id) + 1
    around = (empty[:border], empty[border:])
    full = np.array([len(ids) + len(empty) for ids in found["input_ids"]], np.int64)
    widest = np.minimum(3 * full // 4 + len(empty), max_length)
    return Documents(
        found["input_ids"], None, examples.labels, widest, full, starts=starts, around=around, most=max_length
    )


def _word_starts(words: Sequence[int | None]) -> list[int]:
    return [place for place, word in enumerate(words) if place == 0 or word != words[place - 1]]
