"""The residual convolution is transformers' Conv2d, computed otherwise."""

import pytest
import torch

from nystromformer.attention.convolution import residual_convolution


def conv2d(value, weight):
    return torch.nn.functional.conv2d(
        value, weight, padding=(weight.shape[2] // 2, 0), groups=weight.shape[0]
    )


@pytest.mark.parametrize("kernel", [1, 3, 33, 65])
@pytest.mark.parametrize("length", [1, 15, 16, 17, 64, 100, 257])
def test_equals_conv2d(length, kernel):
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


def test_an_even_kernel_is_named():
    with pytest.raises(ValueError, match="odd width"):
        residual_convolution(torch.randn(1, 2, 8, 4), torch.randn(2, 1, 4, 1))
