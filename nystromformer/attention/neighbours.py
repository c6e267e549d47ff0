"""Exact attention to a token's neighbours, Nyström attention to what lies beyond: one softmax over both.

Landmarks blur what heads of trained models look at most: neighbours and the first token. So a row's real
tokens are cut into blocks of w, and a token attends exactly to the near tokens N(i): its own block, the two
beside it, and the row's first token. With E = exp(Q Kᵀ/√D) and its Nyström approximation

    Ê = exp(Q K̃ᵀ/√D) · Z diag(1 / Σ exp(Q̃ K̃ᵀ/√D)) · exp(Q̃ Kᵀ/√D),      Z ≈ Ã⁺ as in the paper,

    out_i = (Σ_near E_ij v_j + s_i Σ_far Ê_ij v_j) / (Σ_near E_ij + max(Σ_far Ê_ij, 0))
    s_i   = Σ_far Ê_ij / Σ_s c_is exp(q_i·k̃_s/√D), within 0 and 1,    c_is the far tokens in segment s.

The softmax's sum is that of what is added up, so that near and far parts have their true shares; the paper's
Ŝ has its factors normalised each for itself, which the far part cannot know. The divisor of s_i is what the
far sum is at least (Jensen's inequality, where segments are wholly far): less of it shows that the
approximation is no good for this token, whose far part then fades out. A token without far ones gets exact
attention.

All tokens of a block share N(i), so that the far part of block c is F̃ · P_c with P_c from
Y − Σ_near B̃_j v_j, M × D: no matrix of N × M or N × 3w is kept for the backward pass.

Shapes: B rows, H heads, N positions, D head width, M landmarks; w tokens of a block, C blocks, W = 3w + 1
near tokens. Real tokens come first here (see `RealTokensFirst`), so position is rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nystromformer.attention.precision import without_autocast

SMALLEST = -60.0
"""Logarithm of the least share of the near part that is told from nothing, so that no sum is 0."""

LEAST = 1e-30
"""Where the far sum's lower bound is 0, because nothing is far."""


def attention_with_neighbours(
    query_BHND: Tensor,
    key_BHND: Tensor,
    value_BHND: Tensor,
    query_BHMD: Tensor,
    key_BHMD: Tensor,
    inverse_BHMM: Tensor,
    neighbours: int,
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
        neighbours: w.
        kernels: compute what is of the tokens by the GPU's kernels, which `gpu.support` has to allow.
    """
    if kernels:
        return _by_kernels(
            query_BHND, key_BHND, value_BHND, query_BHMD, key_BHMD, inverse_BHMM, neighbours, blocks
        )
    arguments = (query_BHND, key_BHND, value_BHND, query_BHMD, key_BHMD, inverse_BHMM, neighbours, blocks)
    return _computed_again(_attention, *arguments)


def _computed_again(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result, of which nothing but the arguments is kept for the backward pass."""
    if not torch.is_grad_enabled():
        return function(*arguments)
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)


@dataclass(frozen=True)
class Blocks:
    """What of the blocks depends on the rows' lengths alone."""

    count_B: Tensor
    """Real tokens, at least 1, int32."""
    real_BN: Tensor
    """Whether a position, padded to whole blocks, holds a token, bool."""
    near_BC1W: Tensor
    """Which near places of a block hold a token, bool: the block before, itself, the next, the first."""
    far_BC: Tensor
    """Whether a block has far tokens, bool."""
    far_BCM: Tensor
    """Far tokens in each segment, float."""

    @classmethod
    def of(cls, count_B: Tensor, positions: int, neighbours: int, num_landmarks: int) -> Blocks:
        """Of rows of so many real tokens, which come first; an empty row counts as one token."""
        w, m, device = neighbours, num_landmarks, count_B.device
        c = -(-positions // w)
        count_B1 = count_B.clamp(min=1)[:, None]
        block_C = torch.arange(c, device=device)
        first_C = (block_C - 1) * w
        place_CW = first_C[:, None] + torch.arange(3 * w, device=device)
        near_BCW = (place_CW >= 0) & (place_CW < count_B1[..., None])
        beyond_BC1 = (block_C >= 2).expand(len(count_B), c)[..., None]
        # Far tokens in segment s: those before the near ones, but for the first, and those after.
        segment_M = torch.arange(m + 1, device=device)
        border_BM = segment_M * (count_B1 // m) + torch.minimum(segment_M, count_B1 % m)
        start_B1M, stop_B1M = border_BM[:, None, :-1], border_BM[:, None, 1:]
        before_CM = first_C.clamp(min=0)[:, None]
        after_CM = (first_C + 3 * w)[:, None]
        far_BCM = (torch.minimum(stop_B1M, before_CM) - start_B1M.clamp(min=1)).clamp(min=0)
        far_BCM = far_BCM + (stop_B1M - torch.maximum(start_B1M, after_CM)).clamp(min=0)
        return cls(
            count_B=count_B1[:, 0].to(torch.int32),
            real_BN=torch.arange(c * w, device=device) < count_B1,
            near_BC1W=torch.cat([near_BCW, beyond_BC1], dim=-1)[:, :, None],
            far_BC=far_BCM.sum(dim=-1) > 0,
            far_BCM=far_BCM.to(torch.float32),
        )


def _attention(
    query_BHND: Tensor,
    key_BHND: Tensor,
    value_BHND: Tensor,
    query_BHMD: Tensor,
    key_BHMD: Tensor,
    inverse_BHMM: Tensor,
    neighbours: int,
    blocks: Blocks,
) -> Tensor:
    n, d = query_BHND.shape[2:]
    width = value_BHND.shape[-1]
    with without_autocast(query_BHND):
        exact = inverse_BHMM.dtype
        query, key, value = (
            _blocks(x.to(_computed_in(x, exact)), neighbours) for x in (query_BHND, key_BHND, value_BHND)
        )
        query = query * d**-0.5
        mixed_BHCME, log_scale_BH11 = _mixed(key, value, query_BHMD, key_BHMD, inverse_BHMM, blocks)
        near_BHCwD, log_near_BHCw1 = _near(query, key, value, blocks, exact)
        far_BHCwE, log_far_BHCw1 = _far(query, key_BHMD, mixed_BHCME, log_scale_BH11, blocks)
        far_BHCwD, sum_BHCw1 = far_BHCwE.split([width, 1], dim=-1)
        top_BHCw1 = torch.maximum(log_near_BHCw1, log_far_BHCw1).detach()
        near_share = (log_near_BHCw1 - top_BHCw1).clamp(min=SMALLEST).exp()
        far_share = (log_far_BHCw1 - top_BHCw1).exp()
        total = near_share + far_share * sum_BHCw1.clamp(min=0)
        out_BHCwD = (near_share * near_BHCwD + far_share * far_BHCwD) / total
    return out_BHCwD.flatten(2, 3)[:, :, :n].to(query_BHND.dtype)


def _by_kernels(
    query_BHND: Tensor,
    key_BHND: Tensor,
    value_BHND: Tensor,
    query_BHMD: Tensor,
    key_BHMD: Tensor,
    inverse_BHMM: Tensor,
    neighbours: int,
    blocks: Blocks,
) -> Tensor:
    # Here, because it imports Triton, which only GPUs need.
    from nystromformer.attention.gpu.near_operator import near_and_far_on_gpu

    width = value_BHND.shape[-1]
    with without_autocast(query_BHND):
        key, value = (_blocks(x, neighbours) for x in (key_BHND, value_BHND))
        mixed_BHCME, log_scale_BH11 = _computed_again(
            _mixed, key, value, query_BHMD, key_BHMD, inverse_BHMM, blocks
        )
        return near_and_far_on_gpu(
            query_BHND,
            key_BHND,
            value_BHND,
            blocks.count_B,
            key_BHMD,
            mixed_BHCME[..., :width],
            mixed_BHCME[..., width],
            blocks.far_BCM,
            log_scale_BH11.flatten(1),
            neighbours,
        )


def _computed_in(x: Tensor, exact: torch.dtype) -> torch.dtype:
    """Of products over tokens; the far part could leave float16's range."""
    return exact if x.device.type == "cpu" or x.dtype == torch.float16 else x.dtype


def _near(
    query_BHCwD: Tensor, key_BHCwD: Tensor, value_BHCwD: Tensor, blocks: Blocks, exact: torch.dtype
) -> tuple[Tensor, Tensor]:
    """softmax over the near tokens, and the logarithm of its sum."""
    w = query_BHCwD.shape[3]
    scores = [query_BHCwD @ part.mT for part in _three(key_BHCwD)]
    scores.append(query_BHCwD @ key_BHCwD[:, :, :1, :1].mT)
    scores_BHCwW = torch.cat(scores, dim=-1).to(exact)
    scores_BHCwW = scores_BHCwW.masked_fill(~blocks.near_BC1W[:, None], float("-inf"))
    # Blocks of padding alone, in which nothing is near, take what does no harm.
    empty_BC11 = ~blocks.near_BC1W.any(dim=-1, keepdim=True)
    scores_BHCwW = scores_BHCwW.masked_fill(empty_BC11[:, None], 0)
    log_sum_BHCw1 = scores_BHCwW.logsumexp(dim=-1, keepdim=True)
    share_BHCwW = (scores_BHCwW - log_sum_BHCw1).exp().to(value_BHCwD.dtype)
    before, own, after, first = share_BHCwW.split([w, w, w, 1], dim=-1)
    values = _three(value_BHCwD)
    out = before @ values[0] + own @ values[1] + after @ values[2] + first * value_BHCwD[:, :, :1, :1]
    return out.to(exact), log_sum_BHCw1


def _mixed(
    key_BHCwD: Tensor,
    value_BHCwD: Tensor,
    query_BHMD: Tensor,
    key_BHMD: Tensor,
    inverse_BHMM: Tensor,
    blocks: Blocks,
) -> tuple[Tensor, Tensor]:
    """P of each block and, as a last column, its values' ones; over the exponential of the second result."""
    exact, dtype, d = inverse_BHMM.dtype, key_BHCwD.dtype, query_BHMD.shape[-1]
    scaled_BHMD = query_BHMD * d**-0.5
    scores_BHMN = (scaled_BHMD.to(dtype) @ key_BHCwD.flatten(2, 3).mT).to(exact)
    scores_BHMN = scores_BHMN.masked_fill(~blocks.real_BN[:, None, None], float("-inf"))
    log_sum_BHM1 = scores_BHMN.logsumexp(dim=-1, keepdim=True)
    factor_BHMN = (scores_BHMN - log_sum_BHM1).exp()  # B̃
    log_landmarks_BHM1 = (scaled_BHMD @ key_BHMD.mT).logsumexp(dim=-1, keepdim=True)
    log_ratio_BHM1 = log_sum_BHM1 - log_landmarks_BHM1
    log_scale_BH11 = log_ratio_BHM1.amax(dim=2, keepdim=True).detach()
    # The values have a column of ones beside them, whose sums are the softmax's.
    factor_BHCMw = factor_BHMN.unflatten(-1, key_BHCwD.shape[2:4]).transpose(2, 3)
    value_BHCwE = F.pad(value_BHCwD.to(exact), (0, 1), value=1.0)
    part_BHCME = factor_BHCMw @ value_BHCwE
    first_BHCME = factor_BHCMw[:, :, :1, :, :1] * value_BHCwE[:, :, :1, :1]
    beyond_C11 = blocks.near_BC1W[0, :, 0, -1, None, None]  # the first token is far from its block
    before, own, after = _three(part_BHCME)
    near_BHCME = before + own + after + torch.where(beyond_C11, first_BHCME, 0)
    far_BHCME = part_BHCME.sum(dim=2, keepdim=True) - near_BHCME
    far_BHCME = torch.where(blocks.far_BC[:, None, :, None, None], far_BHCME, 0)
    weighted_BHMM = inverse_BHMM * (log_ratio_BHM1 - log_scale_BH11).exp().mT
    return weighted_BHMM[:, :, None] @ far_BHCME, log_scale_BH11


def _far(
    query_BHCwD: Tensor,
    key_BHMD: Tensor,
    mixed_BHCME: Tensor,
    log_scale_BH11: Tensor,
    blocks: Blocks,
) -> tuple[Tensor, Tensor]:
    """s Σ_far Ê v and, as a last column, Σ_far Ê; both over the exponential of the second result."""
    exact = mixed_BHCME.dtype
    scores_BHCwM = (query_BHCwD @ key_BHMD.to(query_BHCwD.dtype)[:, :, None].mT).to(exact)
    log_sum_BHCw1 = scores_BHCwM.logsumexp(dim=-1, keepdim=True)
    factor_BHCwM = (scores_BHCwM - log_sum_BHCw1).exp()  # F̃
    out_BHCwE = factor_BHCwM @ mixed_BHCME
    least_BHCw1 = factor_BHCwM @ blocks.far_BCM.to(exact)[:, None, ..., None]
    least_BHCw1 = least_BHCw1 * (-log_scale_BH11[:, :, None]).exp()
    sum_BHCw1 = out_BHCwE[..., -1:]
    trust_BHCw1 = (sum_BHCw1 / least_BHCw1.clamp(min=LEAST)).clamp(0, 1)
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


@dataclass(frozen=True)
class RealTokensFirst:
    """The rows' real tokens in front, in order; what follows them is padding."""

    order_BN: Tensor
    """The position that each token comes from."""
    back_BN: Tensor
    """Where it went."""
    padding_BN: Tensor
    """True at padding, of the new order."""

    @classmethod
    def of(cls, key_padding_mask_BN: Tensor) -> RealTokensFirst:
        order_BN = torch.argsort(key_padding_mask_BN.to(torch.uint8), dim=1, stable=True)
        return cls(order_BN, order_BN.argsort(dim=1), key_padding_mask_BN.gather(1, order_BN))

    def pack(self, x_BHND: Tensor) -> Tensor:
        return _taken(x_BHND, self.order_BN)

    def unpack(self, x_BHND: Tensor) -> Tensor:
        return _taken(x_BHND, self.back_BN)


def _taken(x_BHND: Tensor, position_BN: Tensor) -> Tensor:
    return x_BHND.gather(2, position_BN[:, None, :, None].expand_as(x_BHND))
