"""Exact attention to a token's neighbours, Nyström attention to what lies beyond: one softmax over both.

Landmarks blur what heads of trained models look at most: neighbours and the first token. So a row's real
tokens are cut into blocks of w, and a token attends exactly to the near tokens N(i): its own block, the two
beside it, and the row's salient tokens, of which the first token is one. With E = exp(Q Kᵀ/√D)
and its Nyström approximation, B̃ as in the paper,

    Ê = exp(Q K̃ᵀ/√D) · Z diag(ρ) B̃,      Z ≈ Ã⁺,      ρ = Σ exp(Q̃ Kᵀ/√D) / Σ exp(Q̃ K̃ᵀ/√D) ≤ 8 n/M,

    out_i = (Σ_near E_ij v_j + s_i Σ_far Ê_ij v_j) / (Σ_near E_ij + max(Σ_far Ê_ij, 0))
    s_i   = Σ_far Ê_ij / Σ_s c_is exp(q_i·k̃_s/√D), within 0 and 1,    c_is the far tokens in segment s.

The softmax's sum is that of what is added up, so that near and far parts have their true shares; the paper's
Ŝ has its factors normalised each for itself, which the far part cannot know. The divisor of s_i is what the
far sum is at least (Jensen's inequality, where segments are wholly far): less of it shows that the
approximation is no good for this token, whose far part then fades out. A token without far ones gets exact
attention.

ρ is n/M where a landmark's scores are even. One that looks sharply at single tokens would have a ρ of many
thousands, and what leaks of it into other tokens' far sums would drown them: a trained BERT's attention is
the same with ρ cut at 8 n/M, but uncut it cannot be trained on, as gradients of 1e15 show. What is cut off
is a constant to the gradient, which passes through the cut.

All tokens of a block share N(i), so that the far part of block c is F̃ · P_c with P_c from
Y − Σ_near B̃_j v_j, M × D: no matrix of N × M or N × 3w is kept for the backward pass. Salient tokens are far
from nothing, so they are in no Y.

Salient are the row's first token and the others that the landmarks' queries attend to most: those with the
largest column sums of B̃. Ties go to the earlier token. The choice has no gradient.

Shapes: B rows, H heads, N positions, D head width, M landmarks; w tokens of a block, C blocks, W = 3w places
around a block, S salient tokens. Real tokens come first here (see landmarks.py), so position is rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nystromformer.attention.precision import without_autocast
from nystromformer.attention.recording import is_recorded

SMALLEST = -60.0
"""Logarithm of the least share of the near part that is told from nothing, so that no sum is 0."""

LARGEST_RATIO = 8.0
"""How many times n/M a landmark's ratio ρ is at most."""

LEAST = 1e-30
"""Where the far sum's lower bound is 0, because nothing is far."""


@dataclass(frozen=True)
class Blocks:
    """What of the blocks depends on the rows' lengths alone."""

    neighbours: int
    """w."""
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
            neighbours=w,
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
        c, w = blocks.around_BC1W.shape[1], blocks.neighbours
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


def attention_with_neighbours(
    query_BHND: Tensor,
    key_BHND: Tensor,
    value_BHND: Tensor,
    query_BHMD: Tensor,
    key_BHMD: Tensor,
    inverse_BHMM: Tensor,
    salient_tokens: int,
    blocks: Blocks,
    *,
    kernels: bool = False,
) -> Tensor:
    """The mechanism above, (B, H, N, D); what stands at padded positions means nothing.

    For the backward pass the arguments are kept, and everything else is computed again.

    Args:
        query_BHND, key_BHND, value_BHND: real tokens first, zeros at padding.
        query_BHMD, key_BHMD: landmarks, in at least float32.
        inverse_BHMM: Z of each head.
        salient_tokens: S, with the row's first token.
        kernels: compute what is of the tokens by the GPU's kernels, which `gpu.support` has to allow.
    """
    if kernels:
        # Here, because it imports Triton, which only GPUs need.
        from nystromformer.attention.gpu.neighbours import near_and_far_on_gpu

        first = Salient.of(blocks.border_BM.new_zeros(len(blocks.count_B), 1, 1), blocks)  # for every head
        log_sums_BHM = _log_landmarks(query_BHMD, key_BHMD).squeeze(-1)
        tokens = (query_BHND, key_BHND, value_BHND, blocks.count_B)
        out_BHND: Tensor = near_and_far_on_gpu(
            *tokens, query_BHMD, key_BHMD, inverse_BHMM, log_sums_BHM, first.far_BHCM[:, 0], blocks.neighbours
        )[0]
        return out_BHND
    salient = _salient(key_BHND, query_BHMD, salient_tokens, blocks)
    arguments = (query_BHND, key_BHND, value_BHND, query_BHMD, key_BHMD, inverse_BHMM, blocks, salient)
    if not torch.is_grad_enabled():
        return _attention(*arguments)
    out_BHND = checkpoint(_attention, *arguments, use_reentrant=False, preserve_rng_state=False)
    return out_BHND


@torch.no_grad()
def _salient(key_BHND: Tensor, query_BHMD: Tensor, salient_tokens: int, blocks: Blocks) -> Salient:
    if salient_tokens == 1:
        return Salient.of(blocks.border_BM.new_zeros(*key_BHND.shape[:2], 1), blocks)
    with torch.autocast(key_BHND.device.type, enabled=False):
        key = _blocks(key_BHND.to(_computed_in(key_BHND, query_BHMD.dtype)), blocks.neighbours)
        factor_BHMN, _ = _landmarks_over_tokens(key, query_BHMD, blocks)
        return Salient.of(most_salient(factor_BHMN.sum(dim=2), blocks, salient_tokens), blocks)


def _attention(
    query_BHND: Tensor,
    key_BHND: Tensor,
    value_BHND: Tensor,
    query_BHMD: Tensor,
    key_BHMD: Tensor,
    inverse_BHMM: Tensor,
    blocks: Blocks,
    salient: Salient,
) -> Tensor:
    n, d = query_BHND.shape[2:]
    width = value_BHND.shape[-1]
    with without_autocast(query_BHND):
        exact = inverse_BHMM.dtype
        query, key, value = (
            _blocks(x.to(_computed_in(x, exact)), blocks.neighbours)
            for x in (query_BHND, key_BHND, value_BHND)
        )
        query = query * d**-0.5
        mixed_BHCME, log_scale_BH11 = _mixed(key, value, query_BHMD, key_BHMD, inverse_BHMM, blocks, salient)
        near_BHCwD, log_near_BHCw1 = _near(query, key, value, blocks, salient, exact)
        far_BHCwE, log_far_BHCw1 = _far(query, key_BHMD, mixed_BHCME, log_scale_BH11, salient)
        far_BHCwD, sum_BHCw1 = far_BHCwE.split([width, 1], dim=-1)
        top_BHCw1 = torch.maximum(log_near_BHCw1, log_far_BHCw1).detach()
        near_share = (log_near_BHCw1 - top_BHCw1).clamp(min=SMALLEST).exp()
        far_share = (log_far_BHCw1 - top_BHCw1).exp()
        total = near_share + far_share * sum_BHCw1.clamp(min=0)
        out_BHCwD = (near_share * near_BHCwD + far_share * far_BHCwD) / total
    return out_BHCwD.flatten(2, 3)[:, :, :n].to(query_BHND.dtype)


def _computed_in(x: Tensor, exact: torch.dtype) -> torch.dtype:
    """Of products over tokens; the far part could leave float16's range."""
    return exact if x.device.type == "cpu" or x.dtype == torch.float16 else x.dtype


def _near(
    query_BHCwD: Tensor,
    key_BHCwD: Tensor,
    value_BHCwD: Tensor,
    blocks: Blocks,
    salient: Salient,
    exact: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """softmax over the near tokens, and the logarithm of its sum."""
    w = query_BHCwD.shape[3]
    key_BH1SD, value_BH1SD = (salient.gather(x.flatten(2, 3))[:, :, None] for x in (key_BHCwD, value_BHCwD))
    scores_BHCwW = torch.cat([query_BHCwD @ part.mT for part in _three(key_BHCwD)], dim=-1).to(exact)
    scores_BHCwS = (query_BHCwD @ key_BH1SD.mT).to(exact)
    scores = torch.cat(
        [
            scores_BHCwW.masked_fill(~blocks.around_BC1W[:, None], float("-inf")),
            scores_BHCwS.masked_fill(~salient.beyond_BHC1S, float("-inf")),
        ],
        dim=-1,
    )
    # Nowhere empty: the row's first token is near to every block, those of padding alone too.
    log_sum_BHCw1 = scores.logsumexp(dim=-1, keepdim=True)
    share = (scores - log_sum_BHCw1).exp().to(value_BHCwD.dtype)
    before, own, after, beyond = share.split([w, w, w, key_BH1SD.shape[3]], dim=-1)
    values = _three(value_BHCwD)
    out = before @ values[0] + own @ values[1] + after @ values[2] + beyond @ value_BH1SD
    return out.to(exact), log_sum_BHCw1


def _landmarks_over_tokens(key_BHCwD: Tensor, query_BHMD: Tensor, blocks: Blocks) -> tuple[Tensor, Tensor]:
    """B̃, and the logarithms of its rows' sums."""
    scaled_BHMD = (query_BHMD * query_BHMD.shape[-1] ** -0.5).to(key_BHCwD.dtype)
    scores_BHMN = (scaled_BHMD @ key_BHCwD.flatten(2, 3).mT).to(query_BHMD.dtype)
    scores_BHMN = scores_BHMN.masked_fill(~blocks.real_BN[:, None, None], float("-inf"))
    log_sum_BHM1 = scores_BHMN.logsumexp(dim=-1, keepdim=True)
    return (scores_BHMN - log_sum_BHM1).exp(), log_sum_BHM1


def _log_landmarks(query_BHMD: Tensor, key_BHMD: Tensor) -> Tensor:
    """log Σ exp(Q̃ K̃ᵀ/√D), (B, H, M, 1)."""
    with without_autocast(query_BHMD):
        return ((query_BHMD * query_BHMD.shape[-1] ** -0.5) @ key_BHMD.mT).logsumexp(dim=-1, keepdim=True)


def _mixed(
    key_BHCwD: Tensor,
    value_BHCwD: Tensor,
    query_BHMD: Tensor,
    key_BHMD: Tensor,
    inverse_BHMM: Tensor,
    blocks: Blocks,
    salient: Salient,
) -> tuple[Tensor, Tensor]:
    """P of each block and, as a last column, its values' ones; over the exponential of the second result."""
    exact = inverse_BHMM.dtype
    factor_BHMN, log_sum_BHM1 = _landmarks_over_tokens(key_BHCwD, query_BHMD, blocks)
    log_ratio_BHM1 = log_sum_BHM1 - _log_landmarks(query_BHMD, key_BHMD)
    most_B111 = (blocks.count_B.to(exact) * (LARGEST_RATIO / query_BHMD.shape[2])).log()[:, None, None, None]
    log_ratio_BHM1 = log_ratio_BHM1 - (log_ratio_BHM1 - most_B111).clamp(min=0).detach()
    log_scale_BH11 = log_ratio_BHM1.amax(dim=2, keepdim=True).detach()
    # The values have a column of ones beside them, whose sums are the softmax's.
    value_BHCwE = F.pad(value_BHCwD.to(exact), (0, 1), value=1.0)
    salient_BHCw = salient.marks(factor_BHMN.shape[-1]).unflatten(-1, (-1, key_BHCwD.shape[3]))
    value_BHCwE = value_BHCwE.masked_fill(salient_BHCw[..., None], 0)
    part_BHCME = factor_BHMN.unflatten(-1, (-1, key_BHCwD.shape[3])).transpose(2, 3) @ value_BHCwE
    before, own, after = _three(part_BHCME)
    far_BHCME = part_BHCME.sum(dim=2, keepdim=True) - (before + own + after)
    far_BHCME = torch.where(salient.far_BHC[..., None, None], far_BHCME, 0)
    weighted_BHMM = inverse_BHMM * (log_ratio_BHM1 - log_scale_BH11).exp().mT
    return weighted_BHMM[:, :, None] @ far_BHCME, log_scale_BH11


def _far(
    query_BHCwD: Tensor,
    key_BHMD: Tensor,
    mixed_BHCME: Tensor,
    log_scale_BH11: Tensor,
    salient: Salient,
) -> tuple[Tensor, Tensor]:
    """s Σ_far Ê v and, as a last column, Σ_far Ê; both over the exponential of the second result."""
    exact = mixed_BHCME.dtype
    scores_BHCwM = (query_BHCwD @ key_BHMD.to(query_BHCwD.dtype)[:, :, None].mT).to(exact)
    log_sum_BHCw1 = scores_BHCwM.logsumexp(dim=-1, keepdim=True)
    factor_BHCwM = (scores_BHCwM - log_sum_BHCw1).exp()  # F̃
    out_BHCwE = factor_BHCwM @ mixed_BHCME
    least_BHCw1 = factor_BHCwM @ salient.far_BHCM.to(exact)[..., None]
    least_BHCw1 = least_BHCw1 * (-log_scale_BH11[:, :, None]).exp()
    sum_BHCw1 = out_BHCwE[..., -1:]
    # A clamped quotient has the same value, but beside a tiny bound its gradient is 0 times infinity.
    between_BHCw1 = (sum_BHCw1 > 0) & (sum_BHCw1 < least_BHCw1)
    bound_BHCw1 = torch.where(between_BHCw1, least_BHCw1.clamp(min=LEAST), 1)
    trust_BHCw1 = torch.where(between_BHCw1, sum_BHCw1 / bound_BHCw1, (sum_BHCw1 > 0).to(exact))
    out_BHCwE = torch.cat([trust_BHCw1 * out_BHCwE[..., :-1], sum_BHCw1], dim=-1)
    return out_BHCwE, log_sum_BHCw1 + log_scale_BH11[:, :, None]


def _blocks(x_BHND: Tensor, w: int) -> Tensor:
    """(B, H, C, w, D), zeros behind the last position."""
    return F.pad(x_BHND, (0, 0, 0, -x_BHND.shape[2] % w)).unflatten(2, (-1, w))


def _three(x_BHCXY: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each block the one before it, itself and the next, zeros beyond the ends."""
    c = x_BHCXY.shape[2]
    padded = F.pad(x_BHCXY, (0, 0, 0, 0, 1, 1))
    return padded[:, :, :c], x_BHCXY, padded[:, :, 2:]
