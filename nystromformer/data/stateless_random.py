"""Random numbers as a pure function of what they are for: no generator, no state.

Drawing the mask of example 7 in epoch 3 must give the same bits in any batch, in any worker process
and after any resume. So each draw is the hash of its own coordinates (seed, epoch, example, purpose,
position), computed for whole arrays at once. The hash is the finalizer of splitmix64 (Steele et al.,
2014), whose outputs over consecutive counters pass BigCrush.

All functions take integers or integer arrays, broadcast, and return uint64 arrays.
"""

from __future__ import annotations

import enum

import numpy as np
from numpy.typing import ArrayLike, NDArray

UInt64Array = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLY_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLY_2 = np.uint64(0x94D049BB133111EB)


class Stream(enum.IntEnum):
    """What a random number decides; draws of different streams are independent."""

    SHUFFLE = 1
    CHUNK_LENGTH = 2
    SENTENCE_SPLIT = 3
    SWAP = 4
    TRUNCATE_A = 5
    TRUNCATE_B = 6
    MASK_SELECTION = 7
    MASK_ACTION = 8
    MASK_TOKEN = 9
    SPAN_LENGTH = 10
    LENGTH_GROUP = 11
    SPANS = 12
    WINDOW = 13


def _as_uint64(values: ArrayLike) -> UInt64Array:
    array = np.asarray(values)
    # Two's complement keeps negative seeds apart from positive ones.
    return array if array.dtype == np.uint64 else array.astype(np.int64).view(np.uint64)


def mix(state: ArrayLike) -> UInt64Array:
    """The finalizer of splitmix64: a bijection of 64-bit words in which each bit depends on all."""
    z = np.atleast_1d(_as_uint64(state)) + _GOLDEN
    z ^= z >> np.uint64(30)
    z *= _MULTIPLY_1
    z ^= z >> np.uint64(27)
    z *= _MULTIPLY_2
    z ^= z >> np.uint64(31)
    return z


def row_keys(seed: int, epochs: ArrayLike, indices: ArrayLike) -> UInt64Array:
    """One key for each example: `epochs` and `indices` of shape (B,) give (B,)."""
    key = mix(seed)
    key = mix(key ^ _as_uint64(epochs))
    return mix(key ^ _as_uint64(indices))


def salted(document_hash: int, salt: int) -> UInt64Array:
    """One word for a document, (1,): another for each purpose or copy, none of them its hash."""
    return mix(np.uint64(document_hash) ^ mix(salt))


def bits(keys: UInt64Array, stream: Stream) -> UInt64Array:
    """One 64-bit word for each key, in the keys' shape."""
    return mix(keys ^ mix(int(stream)))


def position_bits(keys: UInt64Array, stream: Stream, length: int) -> UInt64Array:
    """`length` words for each key, (B,) → (B, length); word j does not depend on `length`."""
    counter = np.arange(1, length + 1, dtype=np.uint64) * _GOLDEN
    return mix(bits(keys, stream)[:, None] + counter)


def below(words: UInt64Array, bound: ArrayLike) -> NDArray[np.int64]:
    """Map random words to integers in [0, bound), for bounds from 1 to 2³¹.

    Multiply-shift on the upper 32 bits: the bias is at most bound / 2³².
    """
    return ((words >> np.uint64(32)) * _as_uint64(bound) >> np.uint64(32)).astype(np.int64)


def uniform(words: UInt64Array) -> NDArray[np.float64]:
    """Map random words to floats in [0, 1)."""
    return (words >> np.uint64(11)) * 2.0**-53
