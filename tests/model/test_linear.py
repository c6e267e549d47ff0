"""The linear layer equals PyTorch's, whichever library multiplies."""

import pytest
import torch
from torch import nn

from nystromformer.model import linear
from nystromformer.model.linear import Linear

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise") or not torch.backends.mkldnn.is_available(),
    reason="this PyTorch has no oneDNN",
)


@pytest.fixture(autouse=True)
def onednn(monkeypatch):
    """Through oneDNN on any CPU, and even where it is not worth it."""
    monkeypatch.setattr(linear, "ONEDNN_IS_FASTER", True)
    monkeypatch.setattr(linear, "WORTH_IT", 1)


def pair(bias=True, inputs=48, outputs=80):
    torch.manual_seed(0)
    ours, theirs = Linear(inputs, outputs, bias=bias), nn.Linear(inputs, outputs, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7, 48), (3, 5, 48), (2, 3, 4, 48), (1, 48), (48,), (0, 48)])
def test_values_and_gradients(bias, shape):
    ours, theirs = pair(bias)
    x = torch.randn(shape, requires_grad=True)
    out, expected = ours(x), theirs(x)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    seed = torch.randn_like(expected)
    found = torch.autograd.grad(out, [x, *ours.parameters()], seed)
    for a, b in zip(found, torch.autograd.grad(expected, [x, *theirs.parameters()], seed), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_inputs_and_gradients_in_any_layout():
    ours, theirs = pair()
    x = torch.randn(48, 9).t().requires_grad_()
    seed = torch.ones(()).expand(9, 80)
    for a, b in zip(
        torch.autograd.grad(ours(x), [x, *ours.parameters()], seed),
        torch.autograd.grad(theirs(x), [x, *theirs.parameters()], seed),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_pytorchs(dtype):
    ours, theirs = pair()
    x = torch.randn(5, 48, dtype=dtype)
    assert torch.equal(ours.to(dtype)(x), theirs.to(dtype)(x))


def test_autocast_is_pytorchs():
    ours, theirs = pair()
    x = torch.randn(5, 48)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ours(x), theirs(x))


def test_frozen_parts_get_no_gradient():
    ours, _ = pair()
    ours.weight.requires_grad_(False)
    x = torch.randn(5, 48)
    ours(x).sum().backward()
    assert ours.weight.grad is None
    torch.testing.assert_close(ours.bias.grad, torch.full((80,), 5.0))


def test_compiles_whole():
    ours, theirs = pair()
    x = torch.randn(5, 48, requires_grad=True)
    out = torch.compile(ours, fullgraph=True, backend="aot_eager")(x)
    out.sum().backward()
    torch.testing.assert_close(out, theirs(x), rtol=1e-5, atol=1e-5)
    assert x.grad is not None
