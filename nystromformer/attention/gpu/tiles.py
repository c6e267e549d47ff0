"""What several kernels share: reading tiles of a head, and the segments of a row.

Shapes: B rows, N positions, P positions of a tile, M landmarks, D head width; sizes of blocks are padded to
powers of two.

Real tokens keep their order, so a segment's tokens lie between the first position of that segment and the
first of the next, with padding perhaps among them: `Rows` is the counterpart of `landmarks.Segments`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor


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
def segments_at(segment, row, index_P, real_P, tokens, N, M: tl.constexpr, MASKED: tl.constexpr):
    """The segment of each real position, (P,)."""
    if MASKED:
        segment_P = tl.load(segment + row * N + index_P, mask=real_P, other=0)
    else:
        segment_P = segment_of(index_P, tokens, M)
    return segment_P


@triton.jit
def load_share(
    start_of_head, segment, row, index_P, real_P, tokens, N,
    M: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Gradient of a mean handed back to its tokens, (P, D_PAD): that of the segment, over its size."""
    segment_P = segments_at(segment, row, index_P, real_P, tokens, N, M, MASKED)
    size_P = tokens // M + (segment_P < tokens % M).to(tl.int32)
    grad_PD = load_tile(start_of_head, D, segment_P, real_P, D, D_PAD)
    return grad_PD / tl.maximum(size_P, 1).to(tl.float32)[:, None]


# --- the segments of rows with padding ----------------------------------------------------------------

BLOCK = 1024
"""Positions that a program looks at together."""


@triton.jit
def _rows_kernel(mask, segment, first, count, N, M: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    tokens = tl.zeros([], dtype=tl.int32)
    for start in range(0, N, BLOCK):
        index_P = start + tl.arange(0, BLOCK)
        padding_P = tl.load(mask + row * N + index_P, mask=index_P < N, other=1)
        tokens += tl.sum((padding_P == 0).to(tl.int32), axis=0)
    tl.store(count + row, tokens)
    before = tl.zeros([], dtype=tl.int32)
    for start in range(0, N, BLOCK):
        index_P = start + tl.arange(0, BLOCK)
        inside_P = index_P < N
        real_P = (tl.load(mask + row * N + index_P, mask=inside_P, other=1) == 0).to(tl.int32)
        rank_P = before + tl.cumsum(real_P, axis=0) - 1
        segment_P = segment_of(rank_P, tokens, M)
        tl.store(segment + row * N + index_P, tl.where(real_P == 1, segment_P, -1), mask=inside_P)
        # The first token of a segment says where the segment begins.
        begin_P = segment_P * (tokens // M) + tl.minimum(segment_P, tokens % M)
        tl.store(first + row * M + segment_P, index_P, mask=(real_P == 1) & (rank_P == begin_P))
        before += tl.sum(real_P, axis=0)


@dataclass(frozen=True)
class Rows:
    """What the kernels ask of the rows, all int32; None where there is no padding."""

    segment_BN: Tensor | None = None
    """The segment of each position, -1 at padding."""
    first_BM: Tensor | None = None
    """The first position of each segment, undefined where a row has fewer tokens."""
    count_B: Tensor | None = None
    """The real tokens."""

    @classmethod
    def of(cls, key_padding_mask_BN: Tensor | None, num_landmarks: int) -> Rows:
        if key_padding_mask_BN is None:
            return cls()
        b, n = key_padding_mask_BN.shape
        device = key_padding_mask_BN.device
        segment_BN = torch.empty(b, n, dtype=torch.int32, device=device)
        first_BM = torch.empty(b, num_landmarks, dtype=torch.int32, device=device)
        count_B = torch.empty(b, dtype=torch.int32, device=device)
        block = min(BLOCK, triton.next_power_of_2(n))
        _rows_kernel[(b,)](
            key_padding_mask_BN.contiguous().view(torch.uint8), segment_BN, first_BM, count_B, n,
            num_landmarks, BLOCK=block, num_warps=4,
        )  # fmt: skip
        return cls(segment_BN, first_BM, count_B)
