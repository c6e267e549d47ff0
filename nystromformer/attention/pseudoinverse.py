"""The m × m inverse of Nyström attention: Z ≈ Ã⁺.

Shapes: m landmarks; leading dimensions are any batch. Everything here runs in at least float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nystromformer.attention.precision import at_least_float32, without_autocast
from nystromformer.attention.recording import is_recorded


def initial_inverse(matrix: Tensor) -> Tensor:
    """Z₀ = Ãᵀ / (‖Ã‖₁ ‖Ã‖_∞), the starting value of the iteration (paper, equation 14).

    Both norms belong to each matrix alone. A maximum over the batch, which other implementations
    take, would make one sequence's output depend on its neighbours.

    Args:
        matrix: (..., m, m), entries not negative, as those of a softmax are.
    """
    largest_column_sum = matrix.sum(dim=-2).amax(dim=-1)  # ‖·‖₁
    largest_row_sum = matrix.sum(dim=-1).amax(dim=-1)  # ‖·‖_∞, 1 for a softmax matrix
    return matrix.transpose(-2, -1) / (largest_column_sum * largest_row_sum)[..., None, None]


def iterative_pinv(matrix: Tensor, iterations: int = 6) -> Tensor:
    """Moore-Penrose inverse of a softmax matrix by a third-order iteration (paper, equation 13).

        Z_{j+1} = ¼ Z_j (13 I − Ã Z_j (15 I − Ã Z_j (7 I − Ã Z_j)))

    Args:
        matrix: (..., m, m), entries not negative. Half precision is computed in float32.
        iterations: how many times to apply the step; the paper uses six.

    Returns:
        (..., m, m), float32, or float64 for a float64 input.

    For the backward pass only the input is kept; the iterates are computed again, because at 512
    tokens they would outweigh everything else that the layer keeps.

    Raises:
        ValueError: the matrix is not square, or the count is below 1.
    """
    if matrix.dim() < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise ValueError(f"iterative_pinv takes square matrices (..., m, m), got {tuple(matrix.shape)}")
    if iterations < 1:
        raise ValueError(f"iterations={iterations}: use at least 1")
    matrix = matrix.to(at_least_float32(matrix))
    matrices = matrix.reshape(-1, *matrix.shape[-2:])
    if torch.is_grad_enabled() and matrix.requires_grad and not is_recorded():
        inverses = _RecomputedIteration.apply(matrices, iterations)
    else:
        inverses = iterate(matrices, iterations)
    return inverses.view_as(matrix)


def exact_pinv(matrix: Tensor) -> Tensor:
    """Moore-Penrose inverse by singular values (torch.linalg.pinv): what the iteration converges to.

    Args:
        matrix: (..., m, m). Half precision is computed in float32.

    Singular values below m · eps of the largest count as zero. The gradient is the pseudoinverse's
    own, which exists only where the rank does not change: with nearly equal landmarks it is large.
    """
    matrix = matrix.to(at_least_float32(matrix))
    with without_autocast(matrix):
        return torch.linalg.pinv(matrix)


def iterate(matrix: Tensor, iterations: int, steps: list[tuple[Tensor, ...]] | None = None) -> Tensor:
    """Equation 13 on (batch, m, m); `steps` collects what the backward pass of each step reads."""
    with without_autocast(matrix):
        inverse = initial_inverse(matrix)
        for _ in range(iterations):
            product = torch.bmm(matrix, inverse)  # P = Ã Z
            inner = torch.baddbmm(product, product, product, beta=7, alpha=-1)  # P (7 I − P)
            outer = torch.baddbmm(product, product, inner, beta=15, alpha=-1)  # P (15 I − P (7 I − P))
            if steps is not None:
                steps.append((inverse, product, outer))
            inverse = torch.baddbmm(inverse, inverse, outer, beta=3.25, alpha=-0.25)
    return inverse


def iterate_backward(grad_inverse: Tensor, matrix: Tensor, iterations: int) -> Tensor:
    """Gradient of `iterate` with respect to `matrix`, (batch, m, m); computes the iterates again."""
    steps: list[tuple[Tensor, ...]] = []
    with without_autocast(matrix):
        iterate(matrix, iterations, steps)
        grad, grad_matrix = grad_inverse, torch.zeros_like(matrix)
        for inverse, product, outer in reversed(steps):
            # Z' = ¼ Z (13 I − outer)
            grad_outer = torch.bmm(inverse.mT, grad).mul_(-0.25)
            grad = torch.baddbmm(grad, grad, outer.mT, beta=3.25, alpha=-0.25)
            # outer = 15 P − 7 P² + P³, so its gradient is
            # 15 G − 7 (G Pᵀ + Pᵀ G) + G Pᵀ Pᵀ + Pᵀ G Pᵀ + Pᵀ Pᵀ G
            # where (Pᵀ G + G Pᵀ) Pᵀ joins two of the last three products.
            left, right = torch.bmm(product.mT, grad_outer), torch.bmm(grad_outer, product.mT)
            both = right.add_(left)
            grad_product = grad_outer.mul_(15).sub_(both, alpha=7)
            grad_product.baddbmm_(both, product.mT).baddbmm_(product.mT, left)
            # P = Ã Z
            grad_matrix.baddbmm_(grad_product, inverse.mT)
            grad.baddbmm_(matrix.mT, grad_product)
        return grad_matrix.add_(_initial_inverse_backward(grad, matrix))


def _initial_inverse_backward(grad: Tensor, matrix: Tensor) -> Tensor:
    column_sums, row_sums = matrix.sum(dim=-2), matrix.sum(dim=-1)
    column_norm, row_norm = column_sums.amax(dim=-1), row_sums.amax(dim=-1)
    scale = 1 / (column_norm * row_norm)
    # d scale / d norm = −scale / norm, and each norm is the sum of its largest column or row.
    grad_scale = -(grad.mT * matrix).sum(dim=(-2, -1)) * scale
    at_column = _share_of_largest(column_sums) * (grad_scale / column_norm)[:, None]
    at_row = _share_of_largest(row_sums) * (grad_scale / row_norm)[:, None]
    return grad.mT * scale[:, None, None] + at_column[:, None, :] + at_row[:, :, None]


def _share_of_largest(x: Tensor) -> Tensor:
    """Gradient of amax over the last dimension; equal ones share it, as in PyTorch."""
    hit = x == x.amax(dim=-1, keepdim=True)
    return hit / hit.sum(dim=-1, keepdim=True)


class _RecomputedIteration(torch.autograd.Function):
    """The iteration, keeping its input alone for the backward pass."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, iterations: int) -> Tensor:
        ctx.save_for_backward(matrix)
        ctx.iterations = iterations
        return iterate(matrix, iterations)

    @staticmethod
    def backward(ctx: Any, grad_inverse: Tensor) -> tuple[Tensor, None]:
        (matrix,) = ctx.saved_tensors
        return iterate_backward(grad_inverse, matrix, ctx.iterations), None
