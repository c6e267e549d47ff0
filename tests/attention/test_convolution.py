"""The residual convolution is transformers' Conv2d, computed otherwise."""

import pytest
import torch

from nystromformer.attention.convolution import (
    add_convolution,
    add_convolution_backward,
    banded,
    residual_convolution,
    sum_of_diagonals,
)


def conv2d(value, weight):
    return torch.nn.functional.conv2d(
        value, weight, padding=(weight.shape[2] // 2, 0), groups=weight.shape[0]
    )


@pytest.mark.parametrize("kernel", [1, 3, 33, 65])
@pytest.mark.parametrize("length", [1, 15, 16, 17, 64, 100, 257])
def test_both_ways_equal_conv2d(length, kernel):
    torch.manual_seed(length)
    value = torch.randn(2, length, 3, 5, dtype=torch.float64).transpose(1, 2).requires_grad_()
    weight = torch.randn(3, 1, kernel, 1, dtype=torch.float64, requires_grad=True)
    expected = conv2d(value, weight)
    seed = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, (value, weight), seed)
    out = residual_convolution(value, weight)
    torch.testing.assert_close(out, expected)
    for ours, other in zip(torch.autograd.grad(out, (value, weight), seed), wanted, strict=True):
        torch.testing.assert_close(ours, other)

    band = banded(weight.detach().view(3, kernel))
    grad_band = torch.zeros_like(band)
    for row in range(2):
        out, grad_value = torch.ones_like(expected[row]), torch.ones_like(expected[row])
        add_convolution(out, value.detach()[row], band)
        torch.testing.assert_close(out, expected[row] + 1)
        add_convolution_backward(grad_value, grad_band, seed[row], value.detach()[row], band)
        torch.testing.assert_close(grad_value, wanted[0][row] + 1)
    torch.testing.assert_close(sum_of_diagonals(grad_band).view_as(weight), wanted[1])


def test_an_even_kernel_is_named():
    with pytest.raises(ValueError, match="odd width"):
        residual_convolution(torch.randn(1, 2, 8, 4), torch.randn(2, 1, 4, 1))
