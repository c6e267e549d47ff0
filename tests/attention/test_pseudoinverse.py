"""The iterative inverse, and the supplement's lemma 1."""

import pytest
import torch

from nystromformer.attention.pseudoinverse import exact_pinv, initial_inverse, iterative_pinv

IDENTITY = torch.eye(16, dtype=torch.float64)


def softmax_matrices(*shape: int, scale: float = 2.0) -> torch.Tensor:
    return (scale * torch.randn(*shape, dtype=torch.float64)).softmax(dim=-1)


def test_equals_the_equation():
    torch.manual_seed(0)
    matrix = softmax_matrices(3, 16, 16)
    z = matrix.mT / (matrix.sum(dim=1).amax(dim=1) * matrix.sum(dim=2).amax(dim=1))[:, None, None]
    for iterations in range(1, 8):
        a_z = matrix @ z
        z = 0.25 * z @ (13 * IDENTITY - a_z @ (15 * IDENTITY - a_z @ (7 * IDENTITY - a_z)))
        torch.testing.assert_close(iterative_pinv(matrix, iterations), z, rtol=1e-10, atol=1e-10)


def test_lemma_1_the_error_follows_its_recurrence():
    """E' = ¼ (3 E³ + E⁴) for E = I − ÃZ."""
    torch.manual_seed(1)
    matrix = softmax_matrices(4, 16, 16)
    for iterations in range(1, 7):
        before = IDENTITY - matrix @ iterative_pinv(matrix, iterations)
        after = IDENTITY - matrix @ iterative_pinv(matrix, iterations + 1)
        cube = before @ before @ before
        torch.testing.assert_close(after, 0.25 * (3 * cube + cube @ before), rtol=1e-8, atol=1e-9)


def test_lemma_1_the_start_converges_in_third_order():
    torch.manual_seed(2)
    # Diagonally heavy, so that the errors shrink from the first step and not only in the end.
    matrix = (6 * IDENTITY + torch.randn(8, 16, 16, dtype=torch.float64)).softmax(dim=-1)
    start = torch.linalg.matrix_norm(IDENTITY - matrix @ initial_inverse(matrix), ord=2)
    assert (start < 1).all()
    previous = None
    for iterations in range(1, 6):
        error = torch.linalg.matrix_norm(IDENTITY - matrix @ iterative_pinv(matrix, iterations), ord=2)
        if previous is not None:
            assert (error <= previous**3 + 1e-12).all()
        previous = error
    assert (error < 1e-10).all()


def test_converges_to_the_exact_inverse():
    torch.manual_seed(3)
    matrix = softmax_matrices(2, 3, 16, 16, scale=3.0)
    torch.testing.assert_close(iterative_pinv(matrix, 30), exact_pinv(matrix), rtol=1e-7, atol=1e-7)


def test_every_matrix_starts_from_its_own_norms():
    torch.manual_seed(4)
    matrices = torch.stack([softmax_matrices(16, 16, scale=scale) for scale in (0.1, 1.0, 8.0)])
    for matrix, inverse in zip(matrices, iterative_pinv(matrices), strict=True):
        torch.testing.assert_close(inverse, iterative_pinv(matrix))


@pytest.mark.parametrize("shape", [(5, 5), (2, 5, 5), (2, 3, 4, 4), (1, 1)])
def test_gradient(shape):
    torch.manual_seed(5)
    scores = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: iterative_pinv(x.softmax(dim=-1), 3), scores)
    positive = torch.rand(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: iterative_pinv(x, 2), positive)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    torch.manual_seed(6)
    matrix = softmax_matrices(2, 16, 16).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inverse = iterative_pinv(matrix)
    assert inverse.dtype == torch.float32
    torch.testing.assert_close(inverse, iterative_pinv(matrix.double()).float(), rtol=1e-3, atol=1e-3)


def test_keeps_its_input_alone_for_the_backward_pass():
    matrix = softmax_matrices(2, 16, 16).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda x: x):
        iterative_pinv(matrix)
    assert [x.shape for x in kept] == [matrix.shape]


@pytest.mark.parametrize("bad", [torch.ones(3, 4), torch.ones(4)])
def test_what_is_not_square_is_named(bad):
    with pytest.raises(ValueError, match="square"):
        iterative_pinv(bad)


def test_an_impossible_count_is_named():
    with pytest.raises(ValueError, match="iterations=0"):
        iterative_pinv(torch.eye(3), 0)
