"""How well the approximation does: its factors, and its error beside exact attention.

Shapes: B rows, H heads, N positions, n real tokens of a row, D head width, M landmarks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from nystromformer.attention.composed import composed_nystrom_attention, landmark_inverse, landmarks_of
from nystromformer.attention.landmarks import Segments
from nystromformer.attention.options import NystromOptions
from nystromformer.attention.precision import at_least_float32, without_autocast
from nystromformer.attention.projections import check_projections, mask_of


class Factors(NamedTuple):
    """Ŝ = F̃ Z B̃ (paper, equation 13), for sequences without padding."""

    f_BHNM: Tensor
    z_BHMM: Tensor
    b_BHMN: Tensor


def nystrom_factors(query: Tensor, key: Tensor, **options: Any) -> Factors:
    """The three factors of the approximation, never multiplied: N · M numbers a head, not N · N.

    Args:
        query, key: (B, H, N, D) without padding; pass one row's real tokens where there is some.
        options: `num_landmarks`, `pinv_iterations`, `landmarks` and `landmark_seed`, as of
            `nystrom_attention`.

    Returns:
        F̃, Z and B̃ in at least float32. With N ≤ M, where attention is exact: S, I and I.

    Raises:
        ValueError: a shape, dtype or option is impossible; with exact neighbours there are no such factors.
    """
    check_projections(query, key, key, None)
    chosen = NystromOptions(**options)
    if chosen.neighbours is not None:
        raise ValueError(f"neighbours={chosen.neighbours}: with exact neighbours Ŝ is no F̃ Z B̃, use None")
    b, h, n, d = query.shape
    dtype = at_least_float32(query)
    query, key, scale = query.to(dtype), key.to(dtype), d**-0.5
    with without_autocast(query):
        if n <= chosen.num_landmarks:
            identity_BHNN = torch.eye(n, dtype=dtype, device=query.device).expand(b, h, n, n)
            return Factors(torch.softmax(query @ key.mT * scale, dim=-1), identity_BHNN, identity_BHNN)
        segments = None
        if chosen.landmarks != "segment_means":
            segments = Segments.of(mask_of(query, None), chosen.num_landmarks)
        query_BHMD, key_BHMD = (landmarks_of(x, chosen, segments) for x in (query, key))
        return Factors(
            torch.softmax(query @ key_BHMD.mT * scale, dim=-1),
            landmark_inverse(query_BHMD, key_BHMD, segments, chosen.pinv_iterations),
            torch.softmax(query_BHMD @ key.mT * scale, dim=-1),
        )


@torch.no_grad()
def attention_error(
    query: Tensor, key: Tensor, *, key_padding_mask: Tensor | None = None, **options: Any
) -> Tensor:
    """‖S − Ŝ‖ / ‖S‖ in the Frobenius norm, of each row's real tokens and each head.

    With neighbours, Ŝ is what the values are multiplied by all the same, near tokens and all.

    One row's one head is formed at a time: n × n numbers, and as many for the approximation.

    Args:
        query, key: (B, H, N, D).
        key_padding_mask: (B, N) bool, True at padding.
        options: `num_landmarks`, `pinv_iterations`, `landmarks`, `landmark_seed`, `neighbours` and
            `salient_tokens`, as of `nystrom_attention`.

    Returns:
        (B, H) in at least float32; 0 in a row of padding alone.

    Raises:
        ValueError: a shape, dtype or option is impossible.
    """
    check_projections(query, key, key, key_padding_mask)
    chosen = NystromOptions(**options)
    b, h, _, d = query.shape
    dtype = at_least_float32(query)
    error_BH = torch.zeros(b, h, dtype=dtype, device=query.device)
    with without_autocast(query):
        for row in range(b):
            real = slice(None) if key_padding_mask is None else ~key_padding_mask[row]
            for head in range(h):
                query_11nD, key_11nD = (x[row, head][real].to(dtype)[None, None] for x in (query, key))
                if query_11nD.shape[2] == 0:
                    continue
                exact_nn = torch.softmax(query_11nD[0, 0] @ key_11nD[0, 0].T * d**-0.5, dim=-1)
                if chosen.neighbours is None:
                    factors = nystrom_factors(query_11nD, key_11nD, **options)
                    f_nM, z_MM, b_Mn = (factor[0, 0] for factor in factors)
                    apart_nn = torch.addmm(exact_nn, f_nM @ z_MM, b_Mn, alpha=-1)
                else:
                    values_11nn = torch.eye(query_11nD.shape[2], dtype=dtype, device=query.device)[None, None]
                    approximation_11nn = composed_nystrom_attention(query_11nD, key_11nD, values_11nn, chosen)
                    apart_nn = exact_nn - approximation_11nn[0, 0]
                error_BH[row, head] = apart_nn.norm() / exact_nn.norm()
    return error_BH
