"""The factors and the error of the approximation."""

import pytest
import torch

from nystromformer import nystrom_attention
from nystromformer.attention.diagnostics import attention_error, nystrom_factors


@pytest.mark.parametrize(
    "choice", [{}, {"landmarks": "uniform"}, {"landmarks": "kmeans"}, {"pinv_iterations": None}]
)
@pytest.mark.parametrize("length", [6, 50])
def test_factors_make_the_output(length, choice):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 2, length, 8, dtype=torch.float64)
    f, z, b = nystrom_factors(query, key, num_landmarks=8, **choice)
    expected = nystrom_attention(query, key, value, num_landmarks=8, **choice)
    torch.testing.assert_close(f @ (z @ (b @ value)), expected, rtol=1e-7, atol=1e-7)


def test_error_of_each_row_and_head():
    torch.manual_seed(1)
    query, key = torch.randn(2, 3, 2, 40, 8, dtype=torch.float64)
    mask = torch.arange(40) >= torch.tensor([[40], [8], [0]])
    error = attention_error(query, key, num_landmarks=8, key_padding_mask=mask)
    exact = torch.softmax(query[0] @ key[0].mT / 8**0.5, dim=-1)
    f, z, b = nystrom_factors(query[:1], key[:1], num_landmarks=8)
    wanted = torch.linalg.matrix_norm(exact - (f @ z @ b)[0]) / torch.linalg.matrix_norm(exact)
    torch.testing.assert_close(error[0], wanted)
    assert error[1].max() < 1e-12  # as many landmarks as tokens
    assert (error[2] == 0).all()  # padding alone


def test_error_with_neighbours_is_that_of_what_multiplies_the_values():
    torch.manual_seed(3)
    query, key = torch.randn(2, 2, 2, 40, 8, dtype=torch.float64)
    mask = torch.arange(40) >= torch.tensor([[40], [16]])
    error = attention_error(query, key, num_landmarks=8, key_padding_mask=mask, neighbours=8)
    columns = torch.eye(40, dtype=torch.float64).expand(1, 2, 40, 40).split(8, dim=-1)
    matrix = torch.cat(
        [nystrom_attention(query[:1], key[:1], x, num_landmarks=8, neighbours=8) for x in columns], dim=-1
    )
    exact = torch.softmax(query[:1] @ key[:1].mT / 8**0.5, dim=-1)
    wanted = torch.linalg.matrix_norm(exact - matrix) / torch.linalg.matrix_norm(exact)
    torch.testing.assert_close(error[:1], wanted)
    assert (error[0] < attention_error(query, key, num_landmarks=8)[0]).all()
    assert error[1].max() < 1e-12  # two blocks


def test_error_falls_with_landmarks_and_smooth_sequences():
    torch.manual_seed(2)
    query, key = torch.randn(2, 1, 2, 256, 8).cumsum(dim=-2) / 8
    errors = [attention_error(query, key, num_landmarks=m).mean() for m in (4, 16, 64, 256)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-5


def test_no_more_than_one_matrix_of_all_pairs(monkeypatch):
    """Two heads of n × n at once would be 2 n² numbers; each call here sees one row and one head."""
    seen = []
    real = nystrom_factors

    def note(query, key, **options):
        seen.append(query.shape[:2])
        return real(query, key, **options)

    monkeypatch.setattr("nystromformer.attention.diagnostics.nystrom_factors", note)
    query, key = torch.randn(2, 2, 3, 30, 4)
    attention_error(query, key, num_landmarks=4)
    assert seen == [(1, 1)] * 6


def test_impossible_arguments_are_named():
    with pytest.raises(ValueError, match="share one shape"):
        attention_error(torch.randn(1, 1, 5, 2), torch.randn(1, 1, 6, 2))
