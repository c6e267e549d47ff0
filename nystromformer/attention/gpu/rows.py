"""The segments of rows with padding: one small kernel, the counterpart of `landmarks.Segments`.

Shapes: B rows, N positions, M landmarks.

Real tokens keep their order, so a segment's tokens lie between the first position of that segment and
the first of the next, with padding perhaps among them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from nystromformer.attention.gpu.tiles import segment_of

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
