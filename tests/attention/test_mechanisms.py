"""Linformer, Longformer, Performer and exact attention: each is its own definition, dense and in float64,
one row and one head at a time, and none sees padding or batch mates."""

import pytest
import torch
from torch import Tensor

from nystromformer.attention.linformer import LinformerAttention
from nystromformer.attention.longformer import LongformerAttention, window_attention
from nystromformer.attention.performer import EPSILON, PerformerAttention, orthogonal_features
from nystromformer.attention.softmax import softmax_attention

HEADS, WIDTH, LONGEST = 2, 8, 400


def linformer_of(share_heads: bool):
    torch.manual_seed(0)
    module = LinformerAttention(HEADS, LONGEST, projected=16, share_heads=share_heads).double()

    def dense(query, key, value, head, positions):
        projection = module.projection[0 if share_heads else head, :, : len(key)]
        return torch.softmax(query @ (projection @ key).T / WIDTH**0.5, dim=-1) @ (projection @ value)

    return module, dense


def longformer_of(window: int):
    def attention(query, key, value, *, key_padding_mask=None):
        return LongformerAttention(window)(query, key, value, key_padding_mask=key_padding_mask)

    def dense(query, key, value, head, positions):
        seen = (positions[:, None] - positions).abs() <= window // 2
        seen[0], seen[:, 0] = True, True
        scores = (query @ key.T / WIDTH**0.5).masked_fill(~seen, -float("inf"))
        return torch.softmax(scores, dim=-1) @ value

    return attention, dense


def window_of():
    def attention(query, key, value, *, key_padding_mask=None):
        return window_attention(query, key, value, window=9, key_padding_mask=key_padding_mask)

    def dense(query, key, value, head, positions):
        seen = (positions[:, None] - positions).abs() <= 4
        scores = (query @ key.T / WIDTH**0.5).masked_fill(~seen, -float("inf"))
        return torch.softmax(scores, dim=-1) @ value

    return attention, dense


def performer_of():
    torch.manual_seed(0)
    module = PerformerAttention(WIDTH, num_features=20).double()

    def dense(query, key, value, head, positions):
        def exponents(x):
            x = x / WIDTH**0.25
            return x @ module.features.T - x.square().sum(dim=1, keepdim=True) / 2

        phi_q, phi_k = exponents(query), exponents(key)
        phi_q = torch.exp(phi_q - phi_q.detach().amax(dim=1, keepdim=True)) + EPSILON
        phi_k = torch.exp(phi_k - phi_k.detach().max()) + EPSILON
        weights = phi_q @ phi_k.T
        return weights / weights.sum(dim=1, keepdim=True) @ value

    return module, dense


def softmax_of():
    def dense(query, key, value, head, positions):
        return torch.softmax(query @ key.T / WIDTH**0.5, dim=-1) @ value

    return softmax_attention, dense


MECHANISMS = {
    "softmax": softmax_of,
    "linformer": lambda: linformer_of(True),
    "linformer, a projection for each head": lambda: linformer_of(False),
    "longformer": lambda: longformer_of(33),
    "longformer, narrow": lambda: longformer_of(3),
    "longformer, wide": lambda: longformer_of(257),
    "window": window_of,
    "performer": performer_of,
}


def inputs(rows: int, length: int, dtype=torch.float64) -> list[Tensor]:
    return [torch.randn(rows, length, HEADS, WIDTH, dtype=dtype).transpose(1, 2) for _ in range(3)]


def mask_of(kind: str, rows: int, length: int) -> Tensor:
    place, real = torch.arange(length), torch.randint(1, length + 1, (rows, 1))
    if kind == "right":
        return place >= real
    if kind == "left":
        return place < length - real
    mask = torch.rand(rows, length) < 0.4
    mask[:, length // 2] = False
    return mask


@pytest.mark.parametrize("kind", ["none", "right", "left", "scattered"])
@pytest.mark.parametrize("length", [1, 2, 37, 128, 301])
@pytest.mark.parametrize("name", MECHANISMS)
def test_equals_its_definition(name, length, kind):
    attention, dense = MECHANISMS[name]()
    torch.manual_seed(length)
    query, key, value = (x.requires_grad_() for x in inputs(3, length))
    mask = None if kind == "none" else mask_of(kind, 3, length)
    out = attention(query, key, value, key_padding_mask=mask)
    expected = torch.zeros_like(out)
    for row in range(3):
        real = torch.arange(length) if mask is None else (~mask[row]).nonzero()[:, 0]
        for head in range(HEADS):
            one = (x[row, head, real] for x in (query, key, value))
            expected[row, head, real] = dense(*one, head, real)
    pad_B1N1 = torch.zeros(3, 1, length, 1, dtype=torch.bool) if mask is None else mask[:, None, :, None]
    out = out.masked_fill(pad_B1N1, 0)
    torch.testing.assert_close(out, expected, rtol=1e-8, atol=1e-8)
    seed = torch.randn_like(out)
    ours = torch.autograd.grad(out, (query, key, value), seed)
    wanted = torch.autograd.grad(expected, (query, key, value), seed)
    for mine, other in zip(ours, wanted, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("name", MECHANISMS)
def test_padding_and_batch_mates_reach_nothing(name, garbage):
    attention, _ = MECHANISMS[name]()
    torch.manual_seed(1)
    alone = inputs(1, 50)
    expected = attention(*alone)
    padded = [torch.nn.functional.pad(x, (0, 0, 20, 90)).expand(3, -1, -1, -1).clone() for x in alone]
    mask = torch.ones(3, 160, dtype=torch.bool)
    mask[0, 20:70] = False
    mask[1, 30:60] = False  # the third row is padding alone
    leaves = [x.masked_fill(mask[:, None, :, None], garbage).requires_grad_() for x in padded]
    out = attention(*leaves, key_padding_mask=mask)
    assert out.isfinite().all()
    torch.testing.assert_close(out[:1, :, 20:70], expected, rtol=1e-9, atol=1e-9)
    for gradient in torch.autograd.grad(out[0, :, 20:70].sum(), leaves):
        assert gradient.isfinite().all()
        assert (gradient[1:] == 0).all()
        assert (gradient.masked_select(mask[:, None, :, None]) == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MECHANISMS)
def test_half_precision(name, dtype):
    attention, _ = MECHANISMS[name]()
    torch.manual_seed(2)
    half = inputs(2, 70, dtype)
    mask = mask_of("right", 2, 70)
    expected = attention(*(x.double() for x in half), key_padding_mask=mask)
    out = attention(*half, key_padding_mask=mask)
    assert out.dtype == dtype
    assert (out - expected).norm() <= 2e-2 * expected.norm()


@pytest.mark.parametrize("name", MECHANISMS)
def test_compiles_without_graph_breaks(name):
    attention, _ = MECHANISMS[name]()
    query, key, value = inputs(2, 40)
    mask = mask_of("right", 2, 40)
    compiled = torch.compile(attention, fullgraph=True, backend="eager")
    expected = attention(query, key, value, key_padding_mask=mask)
    torch.testing.assert_close(compiled(query, key, value, key_padding_mask=mask), expected)


def test_features_estimate_the_softmax_kernel():
    generator = torch.Generator().manual_seed(3)
    features = orthogonal_features(4096, WIDTH, generator).double()
    for block in features.split(WIDTH):
        gram = block @ block.T
        torch.testing.assert_close(gram, gram.diag().diag(), rtol=1e-5, atol=1e-4)
    query, key = 0.7 * torch.randn(2, 10, WIDTH, dtype=torch.float64)

    def phi(x):
        return torch.exp(x @ features.T - x.square().sum(dim=1, keepdim=True) / 2)

    estimate = phi(query / 2) @ phi(key / 2).T / 4096
    torch.testing.assert_close(estimate, torch.exp(query @ key.T / 4), rtol=0.2, atol=0.1)


def test_features_are_redrawn_on_request_and_saved():
    module = PerformerAttention(WIDTH, 20)
    before = module.features.clone()
    module.redraw(torch.Generator().manual_seed(1))
    assert not torch.equal(module.features, before)
    again = PerformerAttention(WIDTH, 20)
    again.load_state_dict(module.state_dict())
    assert torch.equal(again.features, module.features)


def test_impossible_arguments_are_named():
    query, key, value = inputs(1, 30)
    with pytest.raises(ValueError, match="window=4 has no middle"):
        LongformerAttention(4)
    with pytest.raises(ValueError, match="30 tokens are more than the 20"):
        LinformerAttention(HEADS, 20, projected=4)(query, key, value)
    with pytest.raises(ValueError, match="projected=0"):
        LinformerAttention(HEADS, 20, projected=0)
    with pytest.raises(ValueError, match="features"):
        PerformerAttention(WIDTH + 1)(query, key, value)
    with pytest.raises(ValueError, match="one floating-point dtype"):
        LongformerAttention(257)(query, key.float(), value)
