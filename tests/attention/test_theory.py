"""The supplement's lemma 2 and proposition 1, and the general Nyström identity of a raw matrix."""

import pytest
import torch

from nystromformer import nystrom_attention
from nystromformer.attention.composed import composed_nystrom_attention
from nystromformer.attention.landmarks import segment_means
from nystromformer.attention.nystrom import attend
from nystromformer.attention.options import NystromOptions
from nystromformer.attention.pseudoinverse import iterative_pinv


def projections(length: int, width: int = 16, rows: int = 1, heads: int = 2, scale: float = 1.0):
    return [
        scale * torch.randn(rows, heads, length, width, dtype=torch.float64),
        scale * torch.randn(rows, heads, length, width, dtype=torch.float64),
        torch.randn(rows, heads, length, width, dtype=torch.float64),
    ]


def exact(query, key, value):
    return torch.softmax(query @ key.mT / query.shape[-1] ** 0.5, dim=-1) @ value


def test_lemma_2_every_token_a_landmark():
    """With tokens repeated in pairs, the landmarks are all different tokens: the paper's own equations
    (not the branch for short rows) then give exact attention, as the inverse converges."""
    torch.manual_seed(0)
    query, key, value = projections(24, scale=2.0)
    query, key = (x.repeat_interleave(2, dim=2) for x in (query, key))
    value = torch.randn(1, 2, 48, 16, dtype=torch.float64)
    expected = exact(query, key, value)
    for attention in (attend, composed_nystrom_attention):
        errors = [
            (attention(query, key, value, NystromOptions(24, iterations)) - expected).norm()
            for iterations in (4, 6, 24)
        ]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < 1e-9 * expected.norm()


def test_lemma_2_short_rows_are_exact():
    torch.manual_seed(1)
    query, key, value = projections(24)
    out = nystrom_attention(query, key, value, num_landmarks=24)
    torch.testing.assert_close(out, exact(query, key, value), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("iterations", [1, 2, 4, 6, 12])
@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_proposition_1(iterations, scale):
    """‖SV − ŜV‖_∞ ≤ (1 + ‖Ã⁺‖_∞ + ‖Ã⁺ − Z*‖_∞) ‖V‖_∞, with the norms of matrices."""
    torch.manual_seed(2)
    query, key, value = projections(90, scale=scale)
    approximate = nystrom_attention(query, key, value, num_landmarks=8, pinv_iterations=iterations)

    landmarks = [segment_means(x, 8) for x in (query, key)]
    kernel = torch.softmax(landmarks[0] @ landmarks[1].mT / 4, dim=-1)
    true_inverse = torch.linalg.pinv(kernel)
    used = iterative_pinv(kernel, iterations)

    def norm(matrix):
        return torch.linalg.matrix_norm(matrix, ord=float("inf"))

    bound = (1 + norm(true_inverse) + norm(true_inverse - used)) * norm(value)
    assert (norm(exact(query, key, value) - approximate) <= bound).all()


def test_more_landmarks_of_smooth_projections_approximate_better():
    torch.manual_seed(3)
    steps = torch.randn(2, 1, 2, 256, 8, dtype=torch.float64)
    query, key = (x.cumsum(dim=-2) / 8 for x in steps)  # neighbours resemble each other, as in text
    value = torch.randn(1, 2, 256, 8, dtype=torch.float64)
    expected = exact(query, key, value)
    errors = [
        (nystrom_attention(query, key, value, num_landmarks=m) - expected).norm() / expected.norm()
        for m in (4, 16, 64)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.5


def test_exact_inverse_is_the_limit_of_the_iteration():
    torch.manual_seed(4)
    query, key, value = projections(60, scale=2.0)
    limit = nystrom_attention(query, key, value, num_landmarks=8, pinv_iterations=None)
    out = nystrom_attention(query, key, value, num_landmarks=8, pinv_iterations=40)
    torch.testing.assert_close(out, limit, rtol=1e-8, atol=1e-8)
