"""Blocks of a row's tokens, and the row's salient tokens, which are near to every block: see `neighbours.py`.

Salient are the row's first token and the others that the landmarks' queries attend to most: those with the
largest column sums of B̃. Ties go to the earlier token. The choice has no gradient.

Shapes: B rows, H heads, N positions, M landmarks; w tokens of a block, C blocks, W = 3w places of the block
before, a block itself and the next; S salient tokens. Real tokens come first, so that position is rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nystromformer.attention.recording import is_recorded


@dataclass(frozen=True)
class Blocks:
    """What of the blocks depends on the rows' lengths alone."""

    count_B: Tensor
    """Real tokens, at least 1, int32."""
    real_BN: Tensor
    """Whether a position, padded to whole blocks, holds a token, bool."""
    around_BC1W: Tensor
    """Which places around a block hold a token, bool: of the block before, itself and the next."""
    border_BM: Tensor
    """Where segments start, and where the last stops: M + 1."""
    beyond_BCM: Tensor
    """Tokens of each segment that do not lie around a block."""

    @classmethod
    def of(cls, count_B: Tensor, positions: int, neighbours: int, num_landmarks: int) -> Blocks:
        """Of rows of so many real tokens, which come first; an empty row counts as one token."""
        w, m, device = neighbours, num_landmarks, count_B.device
        c = -(-positions // w)
        count_B1 = count_B.clamp(min=1)[:, None]
        first_C = (torch.arange(c, device=device) - 1) * w
        place_CW = first_C[:, None] + torch.arange(3 * w, device=device)
        around_BCW = (place_CW >= 0) & (place_CW < count_B1[..., None])
        segment_M = torch.arange(m + 1, device=device)
        border_BM = segment_M * (count_B1 // m) + torch.minimum(segment_M, count_B1 % m)
        start_B1M, stop_B1M = border_BM[:, None, :-1], border_BM[:, None, 1:]
        before_CM = first_C.clamp(min=0)[:, None]
        after_CM = (first_C + 3 * w)[:, None]
        beyond_BCM = (torch.minimum(stop_B1M, before_CM) - start_B1M).clamp(min=0)
        beyond_BCM = beyond_BCM + (stop_B1M - torch.maximum(start_B1M, after_CM)).clamp(min=0)
        return cls(
            count_B=count_B1[:, 0].to(torch.int32),
            real_BN=torch.arange(c * w, device=device) < count_B1,
            around_BC1W=around_BCW[:, :, None],
            border_BM=border_BM,
            beyond_BCM=beyond_BCM,
        )


@dataclass(frozen=True)
class Salient:
    """The salient tokens of each row and head, and what they leave far from each block."""

    rank_BHS: Tensor
    """Ascending, int64; beyond the row's tokens where it has fewer than S."""
    beyond_BHC1S: Tensor
    """Which of them do not lie around a block, bool: they are near to it for being salient."""
    far_BHCM: Tensor
    """Far tokens in each segment, float."""
    far_BHC: Tensor
    """Whether a block has far tokens, bool."""

    @classmethod
    def of(cls, rank_BHS: Tensor, blocks: Blocks) -> Salient:
        c, w = blocks.around_BC1W.shape[1], blocks.around_BC1W.shape[3] // 3
        block_C1 = torch.arange(c, device=rank_BHS.device)[:, None]
        apart_BHCS = ((rank_BHS // w)[:, :, None] - block_C1).abs() > 1
        beyond_BHCS = apart_BHCS & (rank_BHS < blocks.count_B[:, None, None])[:, :, None]
        rank_BHS1, border_B11M = rank_BHS[..., None], blocks.border_BM[:, None, None]
        segment_BHSM = (rank_BHS1 >= border_B11M[..., :-1]) & (rank_BHS1 < border_B11M[..., 1:])
        salient_BHCM = beyond_BHCS.to(torch.float32) @ segment_BHSM.to(torch.float32)
        far_BHCM = blocks.beyond_BCM[:, None] - salient_BHCM
        return cls(rank_BHS, beyond_BHCS[:, :, :, None], far_BHCM, far_BHCM.sum(dim=-1) > 0)

    def gather(self, x_BHND: Tensor) -> Tensor:
        """(B, H, S, D)."""
        return x_BHND.gather(2, self.rank_BHS[..., None].expand(-1, -1, -1, x_BHND.shape[-1]))

    def marks(self, positions: int) -> Tensor:
        """(B, H, N) bool, True at salient tokens."""
        marks_BHN = self.rank_BHS.new_zeros(*self.rank_BHS.shape[:2], positions, dtype=torch.bool)
        return marks_BHN.scatter(2, self.rank_BHS, torch.ones_like(self.rank_BHS, dtype=torch.bool))


def most_salient(attention_BHN: Tensor, blocks: Blocks, salient_tokens: int) -> Tensor:
    """Ranks of the first token and of those that are attended to most, ascending, (B, H, S)."""
    place_N = torch.arange(attention_BHN.shape[2], device=attention_BHN.device)
    attention_BHN = attention_BHN.masked_fill(~blocks.real_BN[:, None], float("-inf"))
    attention_BHN = attention_BHN.masked_fill(place_N == 0, float("inf"))
    if is_recorded():  # there may be fewer places than S, and the last holds no token
        places = attention_BHN.shape[2]
        padded = F.pad(attention_BHN, (0, salient_tokens), value=float("-inf"))
        chosen_BHS = padded.topk(salient_tokens, dim=-1).indices
        return chosen_BHS.clamp(max=places - 1).sort(dim=-1).values
    order_BHN = attention_BHN.argsort(dim=-1, descending=True, stable=True)
    return order_BHN[..., :salient_tokens].sort(dim=-1).values
