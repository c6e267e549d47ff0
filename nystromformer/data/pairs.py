"""Chunks to masked sentence-order pairs, a whole batch at once.

Each chunk is cut at a random sentence boundary into A and B; the longer side loses tokens, at either
end at random, until the pair fits; with probability 1/2 the two change places. ALBERT's semantics:
the label is 0 for the order of the text, 1 for swapped.

Of each row's real tokens round(probability * tokens) are chosen, at least one. Of the chosen, 80 %
become [MASK], 10 % a random token of the vocabulary, 10 % stay. What is chosen:

- `token`: single tokens, exactly that many.
- `whole_word`: words, a word's ## pieces together.
- `ngram`: spans of 1 to 3 whole words with p(n) ∝ 1/n, as ALBERT.

Words and spans are taken in random order, and one that would exceed the number is passed over, as
ALBERT does; so up to a word's length less can be chosen, never more. Where every one is too long, the
shortest is taken as far as the number goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nystromformer.data import stateless_random as random
from nystromformer.data.segmentation import SPECIAL_TOKENS_OF_A_PAIR, SPECIAL_TOKENS_OF_A_SEGMENT
from nystromformer.data.stateless_random import Stream, UInt64Array
from nystromformer.data.storage import offsets_of

IGNORED = -100
"""The label of a token that is not predicted: what torch's cross-entropy ignores."""

_SPAN_WEIGHTS = np.array([1, 1 / 2, 1 / 3])  # of spans of 1, 2 and 3 words
_SPAN_CUMULATIVE = np.cumsum(_SPAN_WEIGHTS / _SPAN_WEIGHTS.sum())[:-1]
_NEVER = np.iinfo(np.uint64).max

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Masking:
    """How to mask with one vocabulary; `apply` is a pure function of the tokens and the rows' keys."""

    probability: float
    unit: str
    """`token`, `whole_word` or `ngram`."""
    mask_id: int
    is_special: BoolArray
    """(vocabulary,): ids that are never chosen, [CLS] or [UNK] for instance."""
    is_continuation: BoolArray
    """(vocabulary,): ids that continue the word before them."""
    replacements: IntArray
    """Ids that a random token is drawn from."""

    def apply(self, input_ids: IntArray, keys: UInt64Array) -> tuple[IntArray, IntArray]:
        """Mask `input_ids` (B, L) with the random keys (B,) of its rows.

        Returns the masked ids and the labels, (B, L) each: the original id where a token is to be
        predicted, IGNORED elsewhere.
        """
        is_real = ~self.is_special[input_ids]
        chosen = self._choose(input_ids, is_real, keys)
        labels = np.where(chosen, input_ids, IGNORED)
        row, column = np.nonzero(chosen)  # an example in seven: the rest of the work is on these only
        action = random.uniform(_bits_at(keys, Stream.MASK_ACTION, row, column))
        drawn = random.below(_bits_at(keys, Stream.MASK_TOKEN, row, column), len(self.replacements))
        original = input_ids[row, column]
        masked = input_ids.copy()
        masked[row, column] = np.where(
            action < 0.8, self.mask_id, np.where(action < 0.9, self.replacements[drawn], original)
        )
        return masked, labels

    def most_predicted(self, real: int) -> int:
        """How many tokens are chosen at most in a row of up to `real` real ones."""
        return int(self._wanted(np.asarray(real)))

    def _wanted(self, real: IntArray) -> IntArray:
        return np.maximum(np.rint(self.probability * real).astype(np.int64), 1)

    def _choose(self, input_ids: IntArray, is_real: BoolArray, keys: UInt64Array) -> BoolArray:
        """Which tokens are to be predicted, (B, L)."""
        real = is_real.sum(axis=1)
        wanted = np.minimum(self._wanted(real), real)
        order = random.position_bits(keys, Stream.MASK_SELECTION, input_ids.shape[1])
        if self.unit == "token":
            return _lowest(np.where(is_real, order, _NEVER), wanted)
        starts_unit = is_real & ~self.is_continuation[input_ids]
        # A side cut inside a word begins with a piece; so does what follows an [UNK].
        starts_unit[:, 1:] |= is_real[:, 1:] & ~is_real[:, :-1]
        if self.unit == "ngram":
            starts_unit = _group_words(starts_unit, is_real, keys)
        return _choose_units(starts_unit, is_real, order, wanted)


def _bits_at(keys: UInt64Array, stream: Stream, row: IntArray, column: IntArray) -> UInt64Array:
    return random.mix(random.bits(keys, stream)[row] + column.astype(np.uint64))


def _lowest(order: UInt64Array, wanted: IntArray) -> BoolArray:
    """Mark the `wanted` lowest numbers of each row, (B, L) → (B, L)."""
    # The column in the lowest bits makes the numbers of a row distinct, so the count is exact.
    length = order.shape[1]
    column_bits = np.uint64(max(length - 1, 1).bit_length())
    distinct = (order >> column_bits << column_bits) | np.arange(length, dtype=np.uint64)
    rank = np.maximum(wanted - 1, 0)
    threshold = np.take_along_axis(np.sort(distinct, axis=1), rank[:, None], axis=1)
    return (distinct <= threshold) & (wanted > 0)[:, None]


def _group_words(starts_word: BoolArray, is_real: BoolArray, keys: UInt64Array) -> BoolArray:
    """Merge words into spans: keep the starts that begin a span.

    The words of a row are tiled by spans with lengths drawn from p(n) ∝ 1/n; a span also ends where
    a special token interrupts the text.
    """
    rows, length = starts_word.shape
    draws = random.uniform(random.position_bits(keys, Stream.SPAN_LENGTH, length))
    span_ends = np.cumsum(1 + np.searchsorted(_SPAN_CUMULATIVE, draws, side="right"), axis=1)
    starts_span_at_word = np.zeros((rows, length + 1), bool)
    starts_span_at_word[:, 0] = True
    row = np.broadcast_to(np.arange(rows)[:, None], span_ends.shape)
    starts_span_at_word[row, np.minimum(span_ends, length)] = True
    word = np.maximum(np.cumsum(starts_word, axis=1) - 1, 0)
    after_interruption = np.zeros_like(is_real)
    after_interruption[:, 1:] = is_real[:, 1:] & ~is_real[:, :-1]
    return starts_word & (np.take_along_axis(starts_span_at_word, word, axis=1) | after_interruption)


def _choose_units(
    starts_unit: BoolArray, is_real: BoolArray, order: UInt64Array, wanted: IntArray
) -> BoolArray:
    """Take whole units in random order, passing over those that would exceed `wanted` tokens."""
    rows, length = starts_unit.shape
    unit = np.maximum(np.cumsum(starts_unit, axis=1) - 1, 0)  # (B, L): each token's unit in its row
    flat = (unit + np.arange(rows)[:, None] * length)[is_real]
    size = np.bincount(flat, minlength=rows * length).reshape(rows, length)
    exists = size > 0

    shuffle = np.argsort(np.where(exists, order, _NEVER), axis=1, kind="stable")
    size = np.take_along_axis(size, shuffle, axis=1)  # (B, units), in the order of taking
    left = wanted.copy()
    waiting = (size > 0) & (size <= left[:, None])
    taken = np.zeros_like(waiting)
    # Each round takes the units up to the first that does not fit; what no longer fits is out for good.
    while waiting.any():
        fits = waiting & (np.cumsum(np.where(waiting, size, 0), axis=1) <= left[:, None])
        taken |= fits
        left -= np.where(fits, size, 0).sum(axis=1)
        waiting &= ~fits & (size <= left[:, None])
    # Where every word is longer than the number wanted, the shortest is taken, up to that number.
    nothing = ~taken.any(axis=1) & (wanted > 0)
    smallest = np.argmin(np.where(size > 0, size, length + 1), axis=1)
    taken[nothing, smallest[nothing]] = True

    chosen_unit = np.zeros_like(taken)
    np.put_along_axis(chosen_unit, shuffle, taken, axis=1)
    chosen = np.take_along_axis(chosen_unit, unit, axis=1) & is_real
    chosen[nothing] &= np.cumsum(chosen[nothing], axis=1) <= wanted[nothing, None]
    return chosen


# --- sentence-order pairs -----------------------------------------------------------------------------


def windows(
    chunks: Sequence[tuple[NDArray[Any], NDArray[np.int32]]], keys: UInt64Array, tokens: int
) -> list[tuple[NDArray[Any], NDArray[np.int32]]]:
    """Of each chunk of more than so many tokens a window of as many: its ids and its sentences' lengths.

    It begins with a sentence, all as likely, or ends with the chunk's end. Where that holds no border of two
    sentences, one is in its middle.
    """
    draws = random.bits(keys, Stream.WINDOW)
    found = []
    for (ids, lengths), draw in zip(chunks, draws, strict=True):
        if (spare := len(ids) - tokens) > 0:
            borders = offsets_of(lengths)
            sentence = int(random.below(draw, len(lengths)))
            begin = min(int(borders[sentence]), spare)
            if not np.any((borders > begin) & (borders < begin + tokens)):
                border = int(borders[min(max(sentence, 1), len(lengths) - 1)])
                begin = min(max(border - tokens // 2, 0), spare)
            ids = ids[begin : begin + tokens]
            lengths = np.diff(np.unique(np.clip(borders, begin, begin + tokens))).astype(np.int32)
        found.append((ids, lengths))
    return found


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


def build_segments(
    tokens: Sequence[NDArray[Any]], *, max_length: int, special: SpecialIds
) -> dict[str, NDArray[np.int64]]:
    """One segment a row, `[CLS] tokens [SEP]`, cut at its end: Pairs without the label of an order."""
    cut = [ids[: max_length - SPECIAL_TOKENS_OF_A_SEGMENT] for ids in tokens]
    lengths = np.asarray([len(ids) for ids in cut])
    column = np.arange(int(lengths.max()) + SPECIAL_TOKENS_OF_A_SEGMENT)[None, :]
    is_token = column < lengths[:, None] + SPECIAL_TOKENS_OF_A_SEGMENT
    input_ids = np.full(is_token.shape, special.pad, np.int64)
    input_ids[:, 0] = special.cls
    input_ids[(column > 0) & (column <= lengths[:, None])] = np.concatenate(cut)
    input_ids[np.arange(len(cut)), lengths + 1] = special.sep
    return {
        "input_ids": input_ids,
        "attention_mask": is_token.astype(np.int64),
        "token_type_ids": np.zeros_like(input_ids),
    }


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
