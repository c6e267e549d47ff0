"""What several kernels share: reading tiles of a head, and the segments of a row.

Shapes: P positions of a tile, M landmarks, D head width; sizes of blocks are padded to powers of two.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_tile(start_of_head, stride, index_P, valid_P, D: tl.constexpr, D_PAD: tl.constexpr):
    """Rows of one head's (positions or landmarks, D), (P, D_PAD); 0 where not valid, and never read."""
    width = tl.arange(0, D_PAD)
    return tl.load(
        start_of_head + index_P[:, None] * stride + width[None, :],
        mask=valid_P[:, None] & (width < D)[None, :],
        other=0.0,
    )


@triton.jit
def store_tile(start_of_head, stride, index_P, valid_P, x_PD, D: tl.constexpr, D_PAD: tl.constexpr):
    """The inverse of `load_tile`, in the memory's dtype."""
    width = tl.arange(0, D_PAD)
    tl.store(
        start_of_head + index_P[:, None] * stride + width[None, :],
        x_PD.to(start_of_head.dtype.element_ty),
        mask=valid_P[:, None] & (width < D)[None, :],
    )


@triton.jit
def real_tokens(segment, row, index_P, N, MASKED: tl.constexpr):
    """Which positions of a tile hold a real token."""
    inside_P = index_P < N
    if MASKED:
        inside_P = inside_P & (tl.load(segment + row * N + index_P, mask=inside_P, other=-1) >= 0)
    return inside_P


@triton.jit
def real_count(count, row, N, MASKED: tl.constexpr):
    """How many real tokens a row has."""
    if MASKED:  # noqa: SIM108 (Triton compiles one branch of an `if`)
        tokens = tl.load(count + row)
    else:
        tokens = N
    return tokens


@triton.jit
def segment_of(rank_P, tokens, M: tl.constexpr):
    """The segment of the r-th of a row's real tokens: as numpy.array_split, the longer ones first."""
    size = tokens // M
    longer = tokens % M
    border = longer * (size + 1)
    return tl.where(rank_P < border, rank_P // (size + 1), longer + (rank_P - border) // tl.maximum(size, 1))


@triton.jit
def load_share(
    start_of_head, segment, row, index_P, real_P, tokens, N,
    M: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Gradient of a mean handed back to its tokens, (P, D_PAD): that of the segment, over its size."""
    if MASKED:
        segment_P = tl.load(segment + row * N + index_P, mask=real_P, other=0)
    else:
        segment_P = segment_of(index_P, tokens, M)
    size_P = tokens // M + (segment_P < tokens % M).to(tl.int32)
    grad_PD = load_tile(start_of_head, D, segment_P, real_P, D, D_PAD)
    return grad_PD / tl.maximum(size_P, 1).to(tl.float32)[:, None]
