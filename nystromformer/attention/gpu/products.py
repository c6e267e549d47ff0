"""Z ≈ Ã⁺ and X = Z Y by PyTorch's batched products, where a head's matrices do not fit on chip.

Shapes: B rows, H heads, M landmarks, D head width. The X of short rows is not computed here: the kernel of
`mix.py` puts their values in its place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nystromformer.attention.composed import landmark_attention
from nystromformer.attention.precision import full_float32
from nystromformer.attention.pseudoinverse import iterate, iterate_backward


def mix(means: Tensor, gathered: Tensor, inverse: Tensor, mixed: Tensor, iterations: int) -> None:
    """Write Z and X = Z Y."""
    m, d = gathered.shape[2:]
    with full_float32(means):
        inverse.copy_(invert(means[0], means[1], iterations))
        torch.bmm(inverse.view(-1, m, m), gathered.view(-1, m, d), out=mixed.view(-1, m, d))


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
        through = through.reshape(-1, m, d)
        grad = torch.bmm(inverse.view(-1, m, m).mT, through)
        grad_gathered.copy_(grad.view_as(grad_gathered))
        delta.copy_((grad_gathered * gathered).sum(dim=-1))
        grad_inverse = torch.bmm(through, gathered.view(-1, m, d).mT)
        grad_query, grad_key = invert_backward(grad_inverse, means[0], means[1], iterations)
        grad_query_means.copy_(grad_query)
        grad_key_means += grad_key


def invert(query_means: Tensor, key_means: Tensor, iterations: int) -> Tensor:
    """Z, (B, H, M, M)."""
    with full_float32(query_means):  # also where TF32 is allowed: with it the inverse does not converge
        matrix = landmark_attention(query_means, key_means, None)
        return iterate(matrix.flatten(0, 1), iterations).view_as(matrix)


def invert_backward(
    grad_inverse: Tensor, query_means: Tensor, key_means: Tensor, iterations: int
) -> tuple[Tensor, Tensor]:
    """Gradients of Q̃ and K̃ from that of Z."""
    m, d = query_means.shape[2:]
    query, key = (x.reshape(-1, m, d) for x in (query_means, key_means))
    with full_float32(query_means):
        matrix = landmark_attention(query_means, key_means, None).flatten(0, 1)
        grad_matrix = iterate_backward(grad_inverse.reshape(-1, m, m), matrix, iterations)
        mean = (grad_matrix * matrix).sum(dim=-1, keepdim=True)
        grad_score = matrix * (grad_matrix - mean) * d**-0.5
        grads = torch.bmm(grad_score, key), torch.bmm(grad_score.mT, query)
    return grads[0].view_as(query_means), grads[1].view_as(key_means)
