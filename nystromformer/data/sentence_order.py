"""Chunks to sentence-order pairs, a whole batch at once.

Each chunk is cut at a random sentence boundary into A and B; the longer side loses tokens, at either
end at random, until the pair fits; with probability 1/2 the two change places. ALBERT's semantics:
the label is 0 for the order of the text, 1 for swapped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nystromformer.data import stateless_random as random
from nystromformer.data.segmentation import SPECIAL_TOKENS_OF_A_PAIR
from nystromformer.data.shards import offsets_of
from nystromformer.data.stateless_random import Stream, UInt64Array


class SpecialIds(NamedTuple):
    """The token ids that frame a pair."""

    cls: int
    sep: int
    pad: int


class Pairs(NamedTuple):
    """`[CLS] first [SEP] second [SEP]`, padded to the batch's longest row of L tokens."""

    input_ids: NDArray[np.int64]
    """(B, L)"""
    attention_mask: NDArray[np.int64]
    """(B, L): 1 on tokens, 0 on padding."""
    token_type_ids: NDArray[np.int64]
    """(B, L): 0 up to the first [SEP], 1 from there to the second, 0 on padding."""
    sentence_order_label: NDArray[np.int64]
    """(B,): 0 in the text's order, 1 swapped."""


def build_pairs(
    tokens: Sequence[NDArray[Any]],
    sentence_lengths: Sequence[NDArray[np.int32]],
    keys: UInt64Array,
    *,
    max_length: int,
    special: SpecialIds,
) -> Pairs:
    """Build the pairs of B chunks: their tokens, their sentences' lengths, and the rows' random keys.

    Every chunk needs at least two sentences. Row i depends on nothing but chunk i and key i.
    """
    chunk_starts = offsets_of(np.asarray([len(chunk) for chunk in tokens]))[:-1]
    a_length, b_length = _cut_at_a_sentence(sentence_lengths, keys)
    a_start, b_start = chunk_starts, chunk_starts + a_length
    a_length, b_length, a_skip, b_skip = _truncate(
        a_length, b_length, keys, max_length - SPECIAL_TOKENS_OF_A_PAIR
    )
    a_start, b_start = a_start + a_skip, b_start + b_skip

    swapped = (random.bits(keys, Stream.SWAP) >> np.uint64(63)).astype(bool)
    first_start, second_start = np.where(swapped, (b_start, a_start), (a_start, b_start))
    first_length, second_length = np.where(swapped, (b_length, a_length), (a_length, b_length))
    input_ids, attention_mask, token_type_ids = _lay_out(
        np.concatenate(tokens), first_start, first_length, second_start, second_length, special
    )
    return Pairs(input_ids, attention_mask, token_type_ids, swapped.astype(np.int64))


def _cut_at_a_sentence(
    sentence_lengths: Sequence[NDArray[np.int32]], keys: UInt64Array
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token counts of A and B, (B,) each: A takes 1 to all but one of the sentences, all as likely."""
    sentences = np.asarray([len(lengths) for lengths in sentence_lengths])
    in_a = 1 + random.below(random.bits(keys, Stream.SENTENCE_SPLIT), sentences - 1)
    # Cumulative over the whole batch, so that a row's part is a difference of two entries.
    cumulative = offsets_of(np.concatenate(sentence_lengths))
    first = offsets_of(sentences)
    start, boundary, end = cumulative[first[:-1]], cumulative[first[:-1] + in_a], cumulative[first[1:]]
    return boundary - start, end - boundary


def _truncate(
    a_length: NDArray[np.int64], b_length: NDArray[np.int64], keys: UInt64Array, target: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Shorten each pair to `target` tokens: the new lengths, and how much goes from either front.

    The closed form of ALBERT's loop, which takes one token at a time from the longer side (from B
    when equal), at its front or its end with probability 1/2 each.
    """
    excess = np.maximum(a_length + b_length - target, 0)
    half = target // 2
    # The shorter side stays whole if it is below half of the target; else both end at half of it.
    new_b = np.where(
        a_length >= b_length, np.minimum(b_length, half), target - np.minimum(a_length, target - half)
    )
    new_b = np.where(excess > 0, new_b, b_length)
    new_a = np.where(excess > 0, target - new_b, a_length)
    a_skip = _binomial_half(a_length - new_a, keys, Stream.TRUNCATE_A)
    b_skip = _binomial_half(b_length - new_b, keys, Stream.TRUNCATE_B)
    return new_a, new_b, a_skip, b_skip


def _binomial_half(trials: NDArray[np.int64], keys: UInt64Array, stream: Stream) -> NDArray[np.int64]:
    """Heads among `trials` fair coins, (B,): the number of ones among so many random bits."""
    most = int(trials.max(initial=0))
    if most == 0:
        return trials
    words = random.position_bits(keys, stream, -(-most // 64))
    coins = np.unpackbits(words.view(np.uint8), axis=1)
    tossed = np.arange(coins.shape[1]) < trials[:, None]
    return (coins * tossed).sum(axis=1, dtype=np.int64)


def _lay_out(
    tokens: NDArray[Any],
    first_start: NDArray[np.int64],
    first_length: NDArray[np.int64],
    second_start: NDArray[np.int64],
    second_length: NDArray[np.int64],
    special: SpecialIds,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Gather `[CLS] first [SEP] second [SEP]` from the flat `tokens`: three arrays of (B, L)."""
    first_sep = (1 + first_length)[:, None]
    second_sep = first_sep + (1 + second_length)[:, None]
    column = np.arange(int(second_sep.max()) + 1)[None, :]
    in_second = column > first_sep
    source = column + np.where(in_second, second_start[:, None] - first_sep, first_start[:, None]) - 1
    # Columns of special tokens and padding point outside their row; what they fetch is overwritten.
    input_ids = tokens[np.clip(source, 0, len(tokens) - 1)].astype(np.int64)
    input_ids[:, 0] = special.cls
    rows = np.arange(len(input_ids))
    input_ids[rows, first_sep[:, 0]] = special.sep
    input_ids[rows, second_sep[:, 0]] = special.sep
    is_token = column <= second_sep
    input_ids[~is_token] = special.pad
    return input_ids, is_token.astype(np.int64), (in_second & is_token).astype(np.int64)
