"""Z ≈ Ã⁺ and X = Z Y by PyTorch's batched products, where a head's matrices do not fit on chip.

Shapes: B rows, H heads, M landmarks, D head width. The X of short rows is not computed here: the kernel of
`mix.py` puts their values in its place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nystromformer.attention.precision import full_float32
from nystromformer.attention.pseudoinverse import iterate, iterate_backward


def mix(means: Tensor, gathered: Tensor, inverse: Tensor, mixed: Tensor, iterations: int) -> None:
    """Write Z and X = Z Y."""
    m, d = gathered.shape[2:]
    with full_float32(means):  # also where TF32 is allowed: with it the inverse does not converge
        inverse_LMM = inverse.view(-1, m, m)
        inverse_LMM.copy_(iterate(_landmark_attention(means), iterations))
        torch.bmm(inverse_LMM, gathered.view(-1, m, d), out=mixed.view(-1, m, d))


def mix_backward(
    grad_mixed: Tensor,
    means: Tensor,
    inverse: Tensor,
    gathered: Tensor,
    count_B: Tensor | None,
    grad_gathered: Tensor,
    delta: Tensor,
    grad_key_means: Tensor,
    grad_query_means: Tensor,
    iterations: int,
) -> None:
    """Write the gradients of Y and Q̃ and `delta`, and add to that of K̃."""
    m, d = gathered.shape[2:]
    with full_float32(means):
        through = grad_mixed
        if count_B is not None:
            through = grad_mixed.masked_fill((count_B <= m)[:, None, None, None], 0)
        through, query, key = (x.reshape(-1, m, d) for x in (through, means[0], means[1]))
        grad = torch.bmm(inverse.view(-1, m, m).mT, through)
        grad_gathered.copy_(grad.view_as(grad_gathered))
        delta.copy_((grad_gathered * gathered).sum(dim=-1))
        grad_inverse = torch.bmm(through, gathered.view(-1, m, d).mT)
        matrix = _landmark_attention(means)
        grad_matrix = iterate_backward(grad_inverse, matrix, iterations)
        mean = (grad_matrix * matrix).sum(dim=-1, keepdim=True)
        grad_score = matrix * (grad_matrix - mean) * d**-0.5
        grad_query_means.copy_(torch.bmm(grad_score, key).view_as(grad_query_means))
        grad_key_means += torch.bmm(grad_score.mT, query).view_as(grad_key_means)


def _landmark_attention(means: Tensor) -> Tensor:
    """Ã, (B · H, M, M)."""
    m, d = means.shape[3:]
    query, key = means[0].reshape(-1, m, d), means[1].reshape(-1, m, d)
    return torch.softmax(torch.bmm(query * d**-0.5, key.mT), dim=-1)
