"""The linear layer equals PyTorch's, whichever library multiplies."""

import pytest
import torch
from torch import nn

from nystromformer.model import linear as module
from nystromformer.model.encoder import activation
from nystromformer.model.linear import linear

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise") or not torch.backends.mkldnn.is_available(),
    reason="this PyTorch has no oneDNN",
)


@pytest.fixture(autouse=True)
def onednn(monkeypatch):
    """Through oneDNN on any CPU, and even where it is not worth it."""
    monkeypatch.setattr(module, "ONEDNN_IS_FASTER", True)
    monkeypatch.setattr(module, "WORTH_IT", 1)


@pytest.fixture
def products(monkeypatch):
    """How many products went through oneDNN."""
    seen = []
    plain = module._times_transpose
    monkeypatch.setattr(module, "_times_transpose", lambda *given: seen.append(1) or plain(*given))
    return seen


def pair(bias=True, inputs=48, outputs=80):
    torch.manual_seed(0)
    ours, theirs = (nn.Linear(inputs, outputs, bias=bias) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7, 48), (3, 5, 48), (2, 3, 4, 48), (1, 48), (48,), (0, 48)])
def test_values_and_gradients(bias, shape):
    ours, theirs = pair(bias)
    x = torch.randn(shape, requires_grad=True)
    out, expected = linear(ours, x), theirs(x)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    seed = torch.randn_like(expected)
    found = torch.autograd.grad(out, [x, *ours.parameters()], seed)
    for a, b in zip(found, torch.autograd.grad(expected, [x, *theirs.parameters()], seed), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("inputs", "outputs"), [(48, 80), (80, 48), (64, 64), (48, 1)])
def test_the_narrower_one_is_turned(monkeypatch, inputs, outputs):
    """Of the weights' gradient: the same sums, laid out as the weights are."""
    turned = []
    plain = module._times_transpose
    monkeypatch.setattr(
        module, "_times_transpose", lambda *given: turned.append(given[0].shape[0]) or plain(*given)
    )
    ours, theirs = pair(inputs=inputs, outputs=outputs)
    x = torch.randn(130, inputs)
    seed = torch.randn(130, outputs)
    (found,) = torch.autograd.grad(linear(ours, x), [ours.weight], seed)
    (expected,) = torch.autograd.grad(theirs(x), [theirs.weight], seed)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    assert found.is_contiguous()
    assert turned[-1] == min(inputs, outputs)


def test_inputs_and_gradients_in_any_layout():
    ours, theirs = pair()
    x = torch.randn(48, 9).t().requires_grad_()
    seed = torch.ones(()).expand(9, 80)
    for a, b in zip(
        torch.autograd.grad(linear(ours, x), [x, *ours.parameters()], seed),
        torch.autograd.grad(theirs(x), [x, *theirs.parameters()], seed),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_pytorchs(dtype):
    ours, theirs = pair()
    x = torch.randn(5, 48, dtype=dtype)
    assert torch.equal(linear(ours.to(dtype), x), theirs.to(dtype)(x))


def test_autocast_is_pytorchs():
    ours, theirs = pair()
    x = torch.randn(5, 48)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(linear(ours, x), theirs(x))


def test_frozen_parts_get_no_gradient():
    ours, _ = pair()
    ours.weight.requires_grad_(False)
    x = torch.randn(5, 48)
    linear(ours, x).sum().backward()
    assert ours.weight.grad is None
    torch.testing.assert_close(ours.bias.grad, torch.full((80,), 5.0))


def test_compiles_whole():
    ours, theirs = pair()
    x = torch.randn(5, 48, requires_grad=True)
    out = torch.compile(linear, fullgraph=True, backend="aot_eager")(ours, x)
    out.sum().backward()
    torch.testing.assert_close(out, theirs(x), rtol=1e-5, atol=1e-5)
    assert x.grad is not None


def test_a_plain_layer_goes_through_onednn(products):
    ours, _ = pair()
    linear(ours, torch.randn(5, 48))
    assert products


@pytest.mark.parametrize("name", ["gelu", "gelu_new", "relu"])
def test_an_activation_follows_to_the_same_bits(name):
    ours, _ = pair()
    then = activation(name)
    x = torch.randn(3, 5, 48)
    expected = then(linear(ours, x.requires_grad_()))
    torch.testing.assert_close(linear(ours, x, then), expected, rtol=0, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(linear(ours, x, then), expected.detach(), rtol=0, atol=1e-6)


def test_a_hook_on_the_activation_is_called():
    ours, _ = pair()
    then, calls = observed(activation("gelu"))
    with torch.no_grad():
        linear(ours, torch.randn(5, 48), then)
    assert calls


def observed(layer):
    calls = []
    layer.register_forward_hook(lambda *_: calls.append(1))
    return layer, calls


def observed_everywhere(layer):
    calls = []
    handle = nn.modules.module.register_module_forward_hook(lambda *_: calls.append(1) or handle.remove())
    return layer, calls


def offloaded(layer):
    """As Accelerate does it: the forward is replaced on the instance."""
    calls, forward = [], layer.forward
    layer.forward = lambda x: calls.append(1) or forward(x)
    return layer, calls


def wrapped(layer):
    """As PEFT does it: a module of another kind in its place."""
    calls = []

    class Adapter(nn.Module):
        def forward(self, x):
            calls.append(1)
            return layer(x)

    return Adapter(), calls


def derived(layer):
    calls = []

    class Another(nn.Linear):
        def forward(self, x):
            calls.append(1)
            return super().forward(x)

    another = Another(48, 80)
    another.load_state_dict(layer.state_dict())
    return another, calls


@pytest.mark.parametrize("change", [observed, observed_everywhere, offloaded, wrapped, derived])
def test_what_is_hung_on_a_layer_is_called(change, products):
    layer, plain = pair()
    layer, calls = change(layer)
    x = torch.randn(5, 48)
    assert torch.equal(linear(layer, x), plain(x))
    assert calls == [1]
    assert not products


def test_function_transforms_are_pytorchs():
    ours, theirs = pair()
    x = torch.randn(3, 5, 48)
    torch.testing.assert_close(torch.func.vmap(lambda row: linear(ours, row))(x), theirs(x))
