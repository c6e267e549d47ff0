"""Landmarks: the m queries and keys that stand for all n of them.

Shapes: B rows of a batch, H heads, N positions, D head width, M landmarks.

A row's segments are cut from its own real tokens, in order, and their sizes differ by at most one
(the longer ones come first). So the landmarks of a row do not know how much padding surrounds it.
A row with at most M real tokens has one token a segment; its further landmarks are absent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Segments:
    """Which position belongs to which segment, for a batch with padding.

    Shared by all layers of a model, since it depends on the padding alone.
    """

    tokens_BMS: Tensor
    """Positions of each segment's tokens, int64; S is the longest segment any row could have."""
    weights_BMS: Tensor
    """1 / size of the segment at its tokens, 0 elsewhere, float32."""
    segment_BN: Tensor
    """The segment of each position, int64; 0 at padding, where `share_BN` is 0."""
    share_BN: Tensor
    """1 / size of the segment that a position belongs to, 0 at padding, float32."""
    present_BM: Tensor
    """Whether a landmark exists, bool. Landmark 0 always does, so that a softmax has a value."""
    short_B: Tensor
    """Rows with at most M real tokens, where the method is exact attention, bool."""

    @classmethod
    def of(cls, key_padding_mask_BN: Tensor, num_landmarks: int) -> Segments:
        """Segments of the real tokens of each row; True in the mask is padding."""
        real_BN = ~key_padding_mask_BN
        n, m = real_BN.shape[1], num_landmarks
        count_B1 = real_BN.sum(dim=1, keepdim=True)
        rank_BN = real_BN.cumsum(dim=1) - 1
        # The first `longer` segments have size + 1 tokens, the others size: as numpy.array_split.
        size_B1, longer_B1 = count_B1 // m, count_B1 % m
        border_B1 = longer_B1 * (size_B1 + 1)
        segment_BN = torch.where(
            rank_BN < border_B1,
            rank_BN // (size_B1 + 1),
            longer_B1 + (rank_BN - border_B1) // size_B1.clamp(min=1),
        )
        segment_BN = torch.where(real_BN, segment_BN, 0)

        segment_M = torch.arange(m, device=real_BN.device)
        size_BM = size_B1 + (segment_M < longer_B1)
        start_BM = segment_M * size_B1 + torch.minimum(segment_M, longer_B1)
        slot_S = torch.arange(-(-n // m), device=real_BN.device)
        # Stable, so that real tokens keep their order; it also puts them in front of the padding.
        position_BN = torch.argsort(key_padding_mask_BN.to(torch.uint8), dim=1, stable=True)
        rank_BMS = (start_BM[..., None] + slot_S).clamp(max=n - 1)
        tokens_BMS = position_BN.gather(1, rank_BMS.flatten(1)).view_as(rank_BMS)
        inverse_size_BM = 1.0 / size_BM.clamp(min=1)
        weights_BMS = torch.where(slot_S < size_BM[..., None], inverse_size_BM[..., None], 0.0)
        share_BN = torch.where(real_BN, inverse_size_BM.gather(1, segment_BN), 0.0)
        present_BM = (size_BM > 0) | (segment_M == 0)
        return cls(tokens_BMS, weights_BMS, segment_BN, share_BN, present_BM, (count_B1 <= m)[:, 0])


def segment_means(x_BHND: Tensor, num_landmarks: int, segments: Segments | None = None) -> Tensor:
    """Mean of each of the M contiguous segments of a row's real tokens (paper, page 4).

    Args:
        x_BHND: queries or keys, (B, H, N, D).
        num_landmarks: M. Without `segments` it must not exceed N.
        segments: from `Segments.of` where there is padding; None where every position is real.

    Returns:
        (B, H, M, D) in at least float32. Absent landmarks are 0.
    """
    b, h, n, d = x_BHND.shape
    m = num_landmarks
    if segments is not None:
        x_LE = x_BHND.transpose(1, 2).reshape(b * n, h * d)
        means_LE = _WeightedSegmentSums.apply(x_LE, segments)
        return means_LE.view(b, m, h, d).transpose(1, 2)
    if n < m:
        raise ValueError(f"{n} tokens cannot be cut into {m} segments: use at most {n} landmarks")
    dtype = torch.float64 if x_BHND.dtype == torch.float64 else torch.float32
    size, longer = divmod(n, m)
    border = longer * (size + 1)
    parts = []
    if longer:
        parts.append(x_BHND[:, :, :border].unflatten(2, (longer, size + 1)).mean(dim=3, dtype=dtype))
    parts.append(x_BHND[:, :, border:].unflatten(2, (m - longer, size)).mean(dim=3, dtype=dtype))
    return torch.cat(parts, dim=2) if longer else parts[0]


def first_tokens(x_BHND: Tensor, segments: Segments) -> Tensor:
    """The first token of each segment, (B, H, M, D): in a short row, the tokens themselves."""
    b, h, n, d = x_BHND.shape
    first_BM = segments.tokens_BMS[..., 0]
    row_B1 = torch.arange(b, device=x_BHND.device)[:, None]
    return x_BHND.transpose(1, 2)[row_B1, first_BM].transpose(1, 2)


class _WeightedSegmentSums(torch.autograd.Function):
    """Sums rows into segments without copying them first; the backward pass is a plain look-up,
    because each position belongs to one segment only."""

    @staticmethod
    def forward(ctx, x_LE: Tensor, segments: Segments) -> Tensor:
        ctx.segments, ctx.dtype = segments, x_LE.dtype
        b, m, s = segments.tokens_BMS.shape
        n = segments.segment_BN.shape[1]
        offset_B11 = n * torch.arange(b, device=x_LE.device)[:, None, None]
        if x_LE.dtype not in (torch.float32, torch.float64):
            x_LE = x_LE.float()  # a sum of many half-precision numbers would lose the small ones
        return torch.nn.functional.embedding_bag(
            (segments.tokens_BMS + offset_B11).view(b * m, s),
            x_LE,
            mode="sum",
            per_sample_weights=segments.weights_BMS.view(b * m, s).to(x_LE.dtype),
        )

    @staticmethod
    def backward(ctx, grad_means_KE: Tensor) -> tuple[Tensor, None]:
        segments = ctx.segments
        b, m, _ = segments.tokens_BMS.shape
        offset_B1 = m * torch.arange(b, device=grad_means_KE.device)[:, None]
        rows_L = (segments.segment_BN + offset_B1).flatten()
        share_L1 = segments.share_BN.reshape(-1, 1).to(grad_means_KE.dtype)
        return (grad_means_KE.index_select(0, rows_L) * share_L1).to(ctx.dtype), None
