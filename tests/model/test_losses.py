"""The cross-entropy of more logits than a GPU has room to copy, beside PyTorch's."""

import pytest
import torch
import torch.nn.functional as F

from nystromformer.model import losses
from nystromformer.model.losses import IGNORED, cross_entropy


@pytest.fixture
def parts(monkeypatch):
    """Three rows at a time, as on a GPU."""
    monkeypatch.setattr(losses, "TOGETHER", 3 * 11 + 5)
    monkeypatch.setattr(losses, "_fills_a_gpu", lambda logits: True)


def case(dtype, rows=10):
    torch.manual_seed(0)
    logits = (5 * torch.randn(rows, 11)).to(dtype).requires_grad_()
    labels = torch.randint(0, 11, (rows,))
    labels[1::4] = IGNORED
    return logits, labels


@pytest.mark.parametrize("rows", [1, 3, 9, 10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_and_gradients_are_pytorchs(parts, dtype, rows):
    logits, labels = case(dtype, rows)
    exact = logits.detach().double().requires_grad_()
    expected = F.cross_entropy(exact, labels)
    found = cross_entropy(logits, labels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    (found_gradient,) = torch.autograd.grad(3 * found, logits)
    (expected_gradient,) = torch.autograd.grad(3 * expected, exact)
    rounding = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}[dtype]
    torch.testing.assert_close(found_gradient.double(), expected_gradient, rtol=rounding, atol=1e-6)


def test_what_is_ignored_may_be_no_number(parts):
    logits, labels = case(torch.float32)
    with torch.no_grad():
        logits[labels == IGNORED] = float("nan")
    found = cross_entropy(logits, labels)
    (gradient,) = torch.autograd.grad(found, logits)
    assert found.isfinite()
    assert (gradient[labels == IGNORED] == 0).all()
    assert gradient.isfinite().all()


def test_nothing_but_what_is_ignored_is_0(parts):
    logits, labels = case(torch.float32)
    found = cross_entropy(logits, torch.full_like(labels, IGNORED))
    assert found == 0
    assert (torch.autograd.grad(found, logits)[0] == 0).all()


def test_the_logits_stay_and_no_copy_of_them_is_kept(parts):
    logits, labels = case(torch.bfloat16)
    before, kept = logits.detach().clone(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        found = cross_entropy(logits * 1, labels)
    found.backward()
    assert torch.equal(logits, before)
    assert sum(x.numel() for x in kept if x.dtype == torch.float32 and x.dim()) < logits.numel()


def test_only_a_gpu_is_spared(monkeypatch):
    monkeypatch.setattr(losses, "TOGETHER", 10)
    assert not losses._fills_a_gpu(torch.empty(11, 1))
    assert losses._fills_a_gpu(torch.empty(11, 1, device="meta"))
    assert not losses._fills_a_gpu(torch.empty(10, 1, device="meta"))
