"""Nyström attention is what the paper's equations say, at any length and under any padding."""

import pytest
import torch

from nystromformer import nystrom_attention

from .equations import reference_nystrom

LENGTHS = [1, 2, 3, 7, 8, 9, 31, 33, 64, 65, 97, 128, 199, 256, 401, 509, 600]


def padding_of(kind: str, rows: int, length: int) -> torch.Tensor:
    """True at padding; every row keeps at least one real token."""
    real = torch.randint(1, length + 1, (rows, 1))
    place = torch.arange(length)
    if kind == "none":
        return torch.zeros(rows, length, dtype=torch.bool)
    if kind == "right":
        return place >= real
    if kind == "left":
        return place < length - real
    scattered = torch.rand(rows, length) < torch.rand(rows, 1)
    scattered[torch.arange(rows), torch.randint(0, length, (rows,))] = False
    return scattered


@pytest.mark.parametrize("kind", ["none", "right", "left", "scattered"])
@pytest.mark.parametrize("length", LENGTHS)
def test_equals_the_equations(length, kind):
    generator = torch.manual_seed(length)
    query, key, value = (1.5 * torch.randn(3, 2, length, 16, generator=generator) for _ in range(3))
    conv_weight = torch.randn(2, 1, 9, 1)
    padding = padding_of(kind, 3, length)
    for m in (8, 64):
        out = nystrom_attention(
            query, key, value, num_landmarks=m, conv_weight=conv_weight,
            key_padding_mask=None if kind == "none" else padding,
        )  # fmt: skip
        expected = reference_nystrom(query, key, value, padding, m, conv_weight)
        error = (out - expected).masked_fill(padding[:, None, :, None], 0).abs().max()
        assert error <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("kind", ["none", "right", "left", "scattered"])
def test_gradients_equal_those_of_the_equations(kind):
    torch.manual_seed(0)
    length, m = 53, 8
    padding = padding_of(kind, 3, length)
    leaves = [torch.randn(3, 2, length, 16, requires_grad=True) for _ in range(3)]
    leaves.append(torch.randn(2, 1, 5, 1, requires_grad=True))
    weights = torch.randn(3, 2, length, 16).masked_fill(padding[:, None, :, None], 0)
    *qkv, conv_weight = leaves
    out = nystrom_attention(
        *qkv, num_landmarks=m, conv_weight=conv_weight, key_padding_mask=None if kind == "none" else padding
    )
    ours = torch.autograd.grad((out * weights).sum(), leaves)
    expected = torch.autograd.grad((reference_nystrom(*qkv, padding, m, conv_weight) * weights).sum(), leaves)
    for mine, reference in zip(ours, expected, strict=True):
        assert (mine - reference).abs().max() <= 2e-5 * reference.abs().max()


def test_an_output_does_not_move_with_batch_mates_or_heads():
    """transformers takes the inverse's starting value from the whole batch."""
    torch.manual_seed(1)
    rows = 4 * torch.randn(3, 5, 2, 150, 16)
    together = nystrom_attention(*rows, num_landmarks=16)
    for row in range(5):
        alone = nystrom_attention(*rows[:, row : row + 1], num_landmarks=16)
        assert (together[row] - alone[0]).abs().max() <= 1e-5 * alone.abs().max()


def test_no_matrix_of_all_pairs_is_kept_for_the_backward_pass():
    length, m = 2048, 32
    query, key, value = (torch.randn(1, 2, length, 16, requires_grad=True) for _ in range(3))
    padding = torch.arange(length)[None] >= 2000
    largest = 0

    def note(tensor):
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        nystrom_attention(query, key, value, num_landmarks=m, key_padding_mask=padding)
    assert 0 < largest <= 2 * 2 * length * m  # heads × n × m, far below heads × n × n


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_garbage_in_the_padding_reaches_nothing(garbage):
    torch.manual_seed(2)
    leaves = [torch.randn(3, 2, 40, 8) for _ in range(3)]
    padding = torch.arange(40) >= torch.tensor([[40], [25], [0]])
    clean = nystrom_attention(*leaves, num_landmarks=8, key_padding_mask=padding)
    dirty = [x.masked_fill(padding[:, None, :, None], garbage).requires_grad_() for x in leaves]
    out = nystrom_attention(*dirty, num_landmarks=8, key_padding_mask=padding)
    assert out.isfinite().all()
    real = ~padding[:, None, :, None]
    torch.testing.assert_close(out * real, clean * real, atol=1e-5, rtol=0)
    for gradient in torch.autograd.grad((out * real).sum(), dirty):
        assert gradient.isfinite().all()
        assert (gradient.masked_select(~real) == 0).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_landmarks": 0}, "num_landmarks=0"),
        ({"pinv_iterations": 0}, "pinv_iterations=0"),
        ({"landmarks": "middle"}, "landmarks='middle'"),
        ({"key_padding_mask": torch.zeros(1, 9)}, "must be bool"),
        ({"key_padding_mask": torch.zeros(1, 8, dtype=torch.bool)}, "shape"),
        ({"conv_weight": torch.zeros(2, 1, 4, 1)}, "odd width"),
        ({"conv_weight": torch.zeros(3, 1, 5, 1)}, "conv_weight"),
    ],
)
def test_impossible_arguments_are_named(change, words):
    x = torch.randn(1, 2, 9, 4)
    with pytest.raises(ValueError, match=words):
        nystrom_attention(x, x, x, **change)


def test_shapes_that_differ_are_named():
    x = torch.randn(1, 2, 9, 4)
    with pytest.raises(ValueError, match="share one shape"):
        nystrom_attention(x, x[:, :, :8], x)
