"""The m × m inverse of Nyström attention: Z ≈ Ã⁺.

Shapes: m landmarks; leading dimensions are any batch. Everything here runs in at least float32.
"""

from __future__ import annotations

import torch
from torch import Tensor


def initial_inverse(matrix: Tensor) -> Tensor:
    """Z₀ = Ãᵀ / (‖Ã‖₁ ‖Ã‖_∞), the starting value of the iteration (paper, equation 14).

    Both norms belong to each matrix alone. A maximum over the batch, which other implementations
    take, would make one sequence's output depend on its neighbours.

    Args:
        matrix: (..., m, m), entries not negative, as those of a softmax are.
    """
    largest_column_sum = matrix.sum(dim=-2).amax(dim=-1)  # ‖·‖₁
    largest_row_sum = matrix.sum(dim=-1).amax(dim=-1)  # ‖·‖_∞, 1 for a softmax matrix
    return matrix.mT / (largest_column_sum * largest_row_sum)[..., None, None]


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
    """
    if matrix.dtype not in (torch.float32, torch.float64):
        matrix = matrix.float()
    with torch.autocast(matrix.device.type, enabled=False):
        if torch.is_grad_enabled() and matrix.requires_grad:
            return _RecomputedIteration.apply(matrix, iterations)
        return _iterate(matrix, iterations)


def _iterate(matrix: Tensor, iterations: int) -> Tensor:
    inverse = initial_inverse(matrix)
    for _ in range(iterations):
        inverse = _step(matrix, inverse)
    return inverse


def _step(matrix: Tensor, inverse: Tensor) -> Tensor:
    product = matrix @ inverse  # Ã Z
    inner = 7.0 * product - product @ product  # ÃZ (7I − ÃZ)
    inner = 15.0 * product - product @ inner  # ÃZ (15I − …)
    return 0.25 * (13.0 * inverse - inverse @ inner)


class _RecomputedIteration(torch.autograd.Function):
    """The iteration, keeping its input alone for the backward pass."""

    @staticmethod
    def forward(ctx, matrix: Tensor, iterations: int) -> Tensor:
        ctx.save_for_backward(matrix)
        ctx.iterations = iterations
        return _iterate(matrix, iterations)

    @staticmethod
    def backward(ctx, grad_inverse: Tensor) -> tuple[Tensor, None]:
        (matrix,) = ctx.saved_tensors
        with torch.enable_grad(), torch.autocast(matrix.device.type, enabled=False):
            matrix = matrix.detach().requires_grad_()
            inverse = _iterate(matrix, ctx.iterations)
            (grad_matrix,) = torch.autograd.grad(inverse, matrix, grad_inverse)
        return grad_matrix, None
