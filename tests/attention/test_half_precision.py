"""The path composed of PyTorch's operators in half precision; test_properties.py has the CPU's operator."""

import pytest
import torch

from nystromformer import nystrom_attention

from .equations import reference_nystrom

LENGTH = 200


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("real", [[200, 200, 200], [200, 130, 16], [200, 17, 0]])
def test_composed(real, autocast, dtype):
    torch.manual_seed(0)
    query, key, value = (torch.randn(3, LENGTH, 2, 32).transpose(1, 2) for _ in range(3))
    weight = torch.randn(2, 1, 5, 1) / 5**0.5
    mask = torch.arange(LENGTH) >= torch.tensor(real)[:, None]
    if not autocast:
        query, key, value, weight = (x.to(dtype) for x in (query, key, value, weight))
    leaves = [x.requires_grad_() for x in (query, key, value)]
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        out = nystrom_attention(
            *leaves,
            num_landmarks=16,
            key_padding_mask=mask,
            conv_weight=weight,
            implementation="composed",
        )
    exact = [x.detach().double().requires_grad_() for x in leaves]
    expected = reference_nystrom(*exact, mask, 16, weight)
    assert (out - expected).norm() <= 2e-2 * expected.norm()
    seed = torch.randn_like(expected)
    found = torch.autograd.grad(out, leaves, seed.to(out.dtype))
    for a, b in zip(found, torch.autograd.grad(expected, exact, seed), strict=True):
        assert (a - b).norm() <= 2e-2 * b.norm()
