"""Prepared chunks as a torch data set that draws pairs and masks while it reads."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from nystromformer.data.layout import Batch, Layout, best_widths
from nystromformer.data.pairs import Masking, SpecialIds, build_pairs, build_segments, windows
from nystromformer.data.segmentation import SPECIAL_TOKENS_OF_A_PAIR, SPECIAL_TOKENS_OF_A_SEGMENT
from nystromformer.data.stateless_random import row_keys
from nystromformer.data.storage import PreparedData

Key = tuple[int, int]
"""(epoch, index): which chunk, and which drawing of its pair and mask."""

_SAMPLED = 4096  # lengths that the widths of static shapes are chosen for


class PretrainingExamples(Dataset[Batch]):
    """One split of a prepared corpus as batches for masked language modelling and sentence order, or for
    masked language modelling alone: then a row is one segment.

    An example is a pure function of (seed, epoch, index): the same in any batch, process and run.
    Pickles without its open files, so each loader process maps the shards itself.
    """

    def __init__(
        self,
        prepared: PreparedData,
        split: str,
        *,
        max_length: int,
        masking_probability: float = 0.15,
        masking: str = "token",
        seed: int = 0,
        sentence_order: bool = True,
    ) -> None:
        # Not above: loader processes, which are to start soon, import this module and need no transformers.
        from nystromformer.data import tokenizer as tokenizers

        self._chunks = prepared.split(split)
        self._max_length = max_length
        self._in_windows = False
        self._seed = seed
        self._sentence_order = sentence_order
        self._added = SPECIAL_TOKENS_OF_A_PAIR if sentence_order else SPECIAL_TOKENS_OF_A_SEGMENT
        tokenizer = prepared.tokenizer()
        self._special = SpecialIds(tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id)
        vocabulary = len(tokenizer)
        self._masking = Masking(
            probability=masking_probability,
            unit=masking,
            mask_id=tokenizer.mask_token_id,
            is_special=_flags(tokenizers.special_ids(tokenizer), vocabulary),
            is_continuation=_flags(tokenizers.continuation_ids(tokenizer), vocabulary),
            replacements=np.asarray(tokenizers.replacement_ids(tokenizer), np.int64),
        )

    def as_drawn(self, max_length: int, masking_probability: float) -> PretrainingExamples:
        """The same examples with rows of at most so many tokens, see `windows`, and so many masked."""
        drawn = copy.copy(self)
        drawn._in_windows = max_length < self._max_length
        drawn._max_length = max_length
        drawn._masking = replace(self._masking, probability=masking_probability)
        return drawn

    def __len__(self) -> int:
        return len(self._chunks)

    def __getitem__(self, key: Key) -> Batch:
        """The example alone: as a row of `__getitems__`, without the batch dimension."""
        return {name: rows[0] for name, rows in self.__getitems__([key]).items()}

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """One collated batch of B = len(keys) rows, padded at the end to its longest row of L tokens.

        All int64: `input_ids`, `attention_mask`, `token_type_ids` and `labels` (-100 where nothing is
        predicted) of shape (B, L), and of pairs `sentence_order_label` (0 in order, 1 swapped), (B,).
        """
        epochs, indices = np.asarray(keys, np.int64).T
        random_keys = row_keys(self._seed, epochs, indices)
        chunks = [self._chunks[index] for index in indices.tolist()]
        if self._in_windows:
            chunks = windows(chunks, random_keys, self._max_length - self._added)
        tokens, sentence_lengths = zip(*chunks, strict=True)
        longest, special = self._max_length, self._special
        if self._sentence_order:
            arrays = build_pairs(
                tokens, sentence_lengths, random_keys, max_length=longest, special=special
            )._asdict()
        else:
            arrays = build_segments(tokens, max_length=longest, special=special)
        masked, labels = self._masking.apply(arrays["input_ids"], random_keys)
        arrays |= {"input_ids": masked, "labels": labels}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def lengths(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of these examples, special ones included, (n,) → (n,); the same in every epoch."""
        return np.minimum(self._chunks.lengths(indices) + self._added, self._max_length)

    def layout(self, *, static: bool) -> Layout:
        """How the training takes these batches; `static` with few widths, chosen for these lengths."""
        if not static:
            return Layout(self._special.pad)
        sampled = min(len(self), _SAMPLED)
        lengths = self.lengths(np.arange(sampled) * len(self) // max(sampled, 1))
        widths = best_widths(lengths, self._max_length)
        slots = (self._masking.most_predicted(width - self._added) for width in widths)
        return Layout(self._special.pad, widths, tuple(slots))


def _flags(ids: Sequence[int], vocabulary: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    flags = np.zeros(vocabulary, bool)
    flags[list(ids)] = True
    return flags
