"""Landmarks: the m queries and keys that stand for all n of them; and a row's real tokens in their order,
which segments and the blocks of neighbours.py are cut from.

Shapes: B rows of a batch, H heads, N positions, P places with real tokens first, D head width, M landmarks;
S tokens of a segment.

A row's segments are cut from its own real tokens, in order, and their sizes differ by at most one
(the longer ones come first). So the landmarks of a row do not know how much padding surrounds it.
A row with at most M real tokens has one token a segment; its further landmarks are absent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nystromformer.attention.precision import at_least_float32, without_autocast
from nystromformer.attention.recording import is_recorded

KMEANS_STEPS = 10


@dataclass(frozen=True)
class RealTokensFirst:
    """The rows' real tokens in front, in order; what follows them is padding.

    P places: N, but in a record whole blocks, one more than there need be. A number of blocks that follows
    from N by rounding, or that can be 1, would tie the record to the lengths that round alike.
    """

    order_BP: Tensor
    """The position that each place's token comes from."""
    back_BN: Tensor
    """The place that each position's token went to."""
    padding_BP: Tensor
    """True at padding, of the new order."""

    @classmethod
    def of(cls, key_padding_mask_BN: Tensor, neighbours: int | None = None) -> RealTokensFirst:
        """Of a mask, True at padding; without `neighbours` P is N in a record too."""
        b, n = key_padding_mask_BN.shape
        real_BN = (~key_padding_mask_BN).long()
        count_B1 = real_BN.sum(dim=1, keepdim=True)
        after_BN = count_B1 + key_padding_mask_BN.long().cumsum(dim=1) - 1
        back_BN = torch.where(key_padding_mask_BN, after_BN, real_BN.cumsum(dim=1) - 1)
        places = n
        if neighbours is not None and is_recorded():
            places = ((n - 1) // neighbours + 2) * neighbours
        every_N = torch.arange(n, device=back_BN.device)
        order_BP = back_BN.new_zeros(b, places).scatter(1, back_BN, every_N.expand_as(back_BN))
        padding_BP = torch.arange(places, device=back_BN.device) >= count_B1
        return cls(order_BP, back_BN, padding_BP)

    def pack(self, x_BHND: Tensor) -> Tensor:
        """(B, H, P, D), 0 at padding as before."""
        packed_BHPD = _taken(x_BHND, self.order_BP)
        return packed_BHPD.masked_fill(self.padding_BP[:, None, :, None], 0) if is_recorded() else packed_BHPD

    def unpack(self, x_BHPD: Tensor) -> Tensor:
        return _taken(x_BHPD, self.back_BN)


@dataclass(frozen=True)
class Segments:
    """Which position belongs to which segment, for a batch with padding.

    Shared by all layers of a model, since it depends on the padding alone.
    """

    tokens_BMS: Tensor
    """Positions of each segment's tokens, int64; S is the longest segment any row could have."""
    filled_BMS: Tensor
    """Whether a segment has such a token, bool."""
    size_BM: Tensor
    """Tokens of each segment, int64; 0 where the landmark is absent."""
    segment_BN: Tensor
    """The segment of each position, int64; 0 at padding."""
    real_BN: Tensor
    """Where the real tokens are, bool."""

    @classmethod
    def of(cls, key_padding_mask_BN: Tensor, num_landmarks: int) -> Segments:
        """Segments of the real tokens of each row; True in the mask is padding."""
        real_BN = ~key_padding_mask_BN
        n, m = real_BN.shape[1], num_landmarks
        count_B1 = real_BN.sum(dim=1, keepdim=True)
        rank_BN = real_BN.long().cumsum(dim=1) - 1
        # The first `longer` segments have size + 1 tokens, the others size: as numpy.array_split.
        size_B1, longer_B1 = count_B1 // m, count_B1 % m
        border_B1 = longer_B1 * (size_B1 + 1)
        segment_BN = torch.where(
            rank_BN < border_B1,
            rank_BN // (size_B1 + 1),
            longer_B1 + (rank_BN - border_B1) // size_B1.clamp(min=1),
        )
        segment_M = torch.arange(m, device=real_BN.device)
        size_BM = size_B1 + (segment_M < longer_B1)
        start_BM = segment_M * size_B1 + torch.minimum(segment_M, longer_B1)
        # One slot more in a record: a dimension of 1, as short rows have, would be a constant there.
        slot_S = torch.arange(-(-n // m) + int(is_recorded()), device=real_BN.device)
        position_BN = RealTokensFirst.of(key_padding_mask_BN).order_BP
        rank_BMS = (start_BM[..., None] + slot_S).clamp(max=n - 1)
        return cls(
            tokens_BMS=position_BN[:, None].expand(-1, m, -1).gather(2, rank_BMS),
            filled_BMS=slot_S < size_BM[..., None],
            size_BM=size_BM,
            segment_BN=torch.where(real_BN, segment_BN, 0),
            real_BN=real_BN,
        )

    def weights_BMN(self, dtype: torch.dtype) -> Tensor:
        """The means as a matrix: what each token counts in each segment's. For records, whose readers know
        few operators; otherwise N · M numbers too many."""
        segment_M1 = torch.arange(self.size_BM.shape[1], device=self.size_BM.device)[:, None]
        member_BMN = (self.segment_BN[:, None] == segment_M1) & self.real_BN[:, None]
        return member_BMN.to(dtype) / self.size_BM.clamp(min=1)[..., None]

    @property
    def present_BM(self) -> Tensor:
        """Whether a landmark exists. Landmark 0 always does, so that a softmax has a value."""
        first_M = torch.arange(self.size_BM.shape[1], device=self.size_BM.device) == 0
        return (self.size_BM > 0) | first_M

    @property
    def short_B(self) -> Tensor:
        """Rows with at most M real tokens, where the method is exact attention."""
        return self.size_BM.sum(dim=1) <= self.size_BM.shape[1]


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
    dtype = at_least_float32(x_BHND)
    if segments is not None and is_recorded():
        with without_autocast(x_BHND):
            return segments.weights_BMN(dtype)[:, None] @ x_BHND.to(dtype)
    if segments is not None:
        x_LE = x_BHND.transpose(1, 2).reshape(b * n, h * d)
        means_LE = _SegmentMeans.apply(x_LE, segments)
        return means_LE.view(b, m, h, d).transpose(1, 2)
    if n < m:
        raise ValueError(f"{n} tokens cannot be cut into {m} segments: use at most {n} landmarks")
    size, longer = divmod(n, m)
    border = longer * (size + 1)
    parts = []
    if longer:
        parts.append(x_BHND[:, :, :border].unflatten(2, (longer, size + 1)).mean(dim=3, dtype=dtype))
    parts.append(x_BHND[:, :, border:].unflatten(2, (m - longer, size)).mean(dim=3, dtype=dtype))
    return torch.cat(parts, dim=2) if longer else parts[0]


def uniform_samples(x_BHND: Tensor, num_landmarks: int, segments: Segments, seed: int = 0) -> Tensor:
    """M real tokens of each row, drawn without replacement, in their order (supplement, figure 1).

    A row's choice depends on the seed and on how many real tokens it has, on nothing else; queries
    and keys, all heads and all rows of one length share it.

    Returns:
        (B, H, M, D); in a row with fewer than M tokens, padding fills it up.
    """
    rank_BN = segments.real_BN.cumsum(dim=1) - 1
    priority_BN = torch.where(segments.real_BN, _hash(rank_BN, seed), 2**32)
    if is_recorded():  # there may be fewer positions than M
        priority_BN = F.pad(priority_BN, (0, num_landmarks), value=2**32)
    position_BM = priority_BN.topk(num_landmarks, dim=1, largest=False).indices.sort(dim=1).values
    position_BM = position_BM.clamp(max=x_BHND.shape[2] - 1)
    return _tokens_at(x_BHND, position_BM)


def kmeans_centres(x_BHND: Tensor, num_landmarks: int, segments: Segments) -> Tensor:
    """Centres of M clusters of each head's queries or keys (supplement, figure 1).

    Lloyd's iteration, KMEANS_STEPS times, from the segment means; a cluster that loses all its tokens
    keeps its centre. The gradient is that of the means: which token belongs where is a constant.

    Returns:
        (B, H, M, D) in at least float32. Stores (B, H, N, M) memberships: a tool of comparison.
    """
    x_BHND = x_BHND.to(at_least_float32(x_BHND))
    centres_BHMD = segment_means(x_BHND, num_landmarks, segments)
    pad_B1N1 = ~segments.real_BN[:, None, :, None]
    for step in range(KMEANS_STEPS):
        with torch.no_grad():
            # |x|² is the same for every centre.
            squared_BH1M = centres_BHMD.square().sum(dim=-1)[:, :, None]
            nearest_BHN = (squared_BH1M - 2 * x_BHND @ centres_BHMD.mT).argmin(dim=-1)
            member_BHNM = F.one_hot(nearest_BHN, num_landmarks).to(x_BHND.dtype).masked_fill(pad_B1N1, 0)
            size_BHM1 = member_BHNM.sum(dim=2)[..., None]
        with torch.set_grad_enabled(torch.is_grad_enabled() and step == KMEANS_STEPS - 1):
            means_BHMD = member_BHNM.mT @ x_BHND / size_BHM1.clamp(min=1)
            centres_BHMD = torch.where(size_BHM1 > 0, means_BHMD, centres_BHMD.detach())
    return centres_BHMD


def first_tokens(x_BHND: Tensor, segments: Segments) -> Tensor:
    """The first token of each segment, (B, H, M, D): in a short row, the tokens themselves."""
    return _tokens_at(x_BHND, segments.tokens_BMS[..., 0])


def _taken(x: Tensor, places: Tensor) -> Tensor:
    return x.gather(2, places[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


def _tokens_at(x_BHND: Tensor, position_BM: Tensor) -> Tensor:
    if is_recorded():  # in ONNX, an index of two tensors would hold the batch's size
        return _taken(x_BHND, position_BM)
    row_B1 = torch.arange(len(x_BHND), device=x_BHND.device)[:, None]
    return x_BHND.transpose(1, 2)[row_B1, position_BM].transpose(1, 2)


def _hash(x: Tensor, seed: int) -> Tensor:
    """Scatter integers over 0 … 2³² − 1, the same on every device and for every length."""
    x = (x + seed * 0x9E3779B1) & 0xFFFFFFFF
    for multiplier in (0x21F0AAAD, 0x735A2D97):  # of "lowbias32", Wellons 2018
        x = ((x ^ (x >> 16)) * multiplier) & 0xFFFFFFFF
    return x ^ (x >> 15)


class _SegmentMeans(torch.autograd.Function):
    """Sums rows into segments without copying them first; the backward pass is a plain look-up,
    because each position belongs to one segment only."""

    @staticmethod
    def forward(ctx: Any, x_LE: Tensor, segments: Segments) -> Tensor:
        ctx.segments, ctx.dtype = segments, x_LE.dtype
        b, m, s = segments.tokens_BMS.shape
        n = segments.segment_BN.shape[1]
        offset_B11 = n * torch.arange(b, device=x_LE.device)[:, None, None]
        x_LE = x_LE.to(at_least_float32(x_LE))  # a sum of many half-precision numbers loses the small ones
        weights_BMS = segments.filled_BMS.to(x_LE.dtype) / segments.size_BM.clamp(min=1)[..., None]
        return F.embedding_bag(
            (segments.tokens_BMS + offset_B11).view(b * m, s),
            x_LE,
            mode="sum",
            per_sample_weights=weights_BMS.view(b * m, s),
        )

    @staticmethod
    def backward(ctx: Any, grad_means_KE: Tensor) -> tuple[Tensor, None]:
        segments = ctx.segments
        b, m, _ = segments.tokens_BMS.shape
        offset_B1 = m * torch.arange(b, device=grad_means_KE.device)[:, None]
        rows_L = (segments.segment_BN + offset_B1).flatten()
        size_BN = segments.size_BM.gather(1, segments.segment_BN).clamp(min=1)
        share_BN = segments.real_BN.to(grad_means_KE.dtype) / size_BN
        return (grad_means_KE.index_select(0, rows_L) * share_BN.view(-1, 1)).to(ctx.dtype), None
