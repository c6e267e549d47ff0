"""The compiled kernel: equal to PyTorch's operators, to the bit whatever runs beside it, never required."""

import logging

import pytest
import torch

from nystromformer import nystrom_attention
from nystromformer.attention import build, native

needs_kernel = pytest.mark.skipif(native.library() is None, reason="no g++ on Linux to compile the kernel")


def problem(rows=3, length=150, heads=2, width=32, kernel=5, dtype=torch.float32, seed=0):
    """Leaves and a scattered mask; the last row is short, the one before it full."""
    torch.manual_seed(seed)
    tensors = [torch.randn(rows, length, heads, width).to(dtype).transpose(1, 2) for _ in range(3)]
    if kernel:
        tensors.append(torch.randn(heads, 1, kernel, 1, dtype=dtype))
    mask = torch.rand(rows, length) < 0.3
    mask[-2] = False
    mask[-1, 7:] = True
    return [x.requires_grad_() for x in tensors], mask


NEAR = [(None, 1), (16, 1), (64, 1), (16, 24), (64, 64), (32, 200)]
"""neighbours and salient_tokens"""
ONE_EACH = [(None, 1), (32, 1), (32, 20)]


def run(leaves, mask, m, seed=None, near=(None, 1)):
    """The output and the gradients of the leaves."""
    neighbours, salient = near
    *qkv, weight = leaves if len(leaves) == 4 else (*leaves, None)
    out = nystrom_attention(
        *qkv,
        num_landmarks=m,
        key_padding_mask=mask,
        conv_weight=weight,
        neighbours=neighbours,
        salient_tokens=salient,
    )
    if seed is None:
        seed = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(out.dtype)
    return [out, *torch.autograd.grad(out, leaves, seed)]


@needs_kernel
@pytest.mark.parametrize(
    ("shape", "m"),
    [
        ({}, 16),
        ({"width": 64, "kernel": 33}, 64),
        ({"width": 48, "kernel": 0}, 32),
        ({"width": 16, "kernel": 1, "length": 97}, 80),
        ({"width": 64, "kernel": 129}, 64),
        ({"width": 128, "length": 600, "rows": 2}, 256),
        ({"width": 64, "length": 1000, "heads": 1, "kernel": 33}, 64),
    ],
)
@pytest.mark.parametrize("near", NEAR)
@pytest.mark.parametrize("masked", [False, True])
def test_equals_pytorchs_operators(shape, m, masked, near, monkeypatch):
    leaves, mask = problem(**shape)
    mask = mask if masked else None
    compiled = run(leaves, mask, m, near=near)
    monkeypatch.setattr(native, "suits", lambda *_: False)
    # The reference in float64, so that the two float32 roundings are not compared with each other.
    exact = [x.detach().double().requires_grad_() for x in leaves]
    expected = run(exact, mask, m, near=near)
    for ours, theirs in zip(compiled, expected, strict=True):
        error, scale = (ours - theirs).abs().max(), theirs.abs().max()
        assert error <= 1e-5 * scale, f"{error:.1e} beside {scale:.1e}"


@needs_kernel
def test_another_instruction_set_computes_the_same(fresh, monkeypatch):
    leaves, mask = problem(width=64, kernel=33, length=300)
    expected = {near: run(leaves, mask, 64, near=near) for near in ONE_EACH}
    native.library.cache_clear()
    flags = ["-march=x86-64-v3" if flag == "-march=native" else flag for flag in build.FLAGS]
    monkeypatch.setattr(build, "FLAGS", tuple(flags))
    for near, theirs in expected.items():
        for a, b in zip(run(leaves, mask, 64, near=near), theirs, strict=True):
            assert (a - b).abs().max() <= 1e-5 * b.abs().max()
    assert len(list(fresh.iterdir())) == 2


@needs_kernel
@pytest.mark.parametrize("near", ONE_EACH)
def test_bfloat16_is_read_and_written_as_it_is(near, monkeypatch):
    leaves, mask = problem(width=64, kernel=33, dtype=torch.bfloat16)
    compiled = run(leaves, mask, 64, near=near)
    monkeypatch.setattr(native, "suits", lambda *_: False)
    expected = run([x.detach().double().requires_grad_() for x in leaves], mask, 64, near=near)
    for ours, theirs in zip(compiled, expected, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours - theirs).norm() <= 4e-3 * theirs.norm()  # two roundings of 2⁻⁹


@needs_kernel
@pytest.mark.parametrize("near", ONE_EACH)
def test_threads_and_batch_mates_change_no_bit(near):
    leaves, mask = problem(rows=4, heads=3, width=64, kernel=33)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = run(leaves, mask, 64, near=near)
        torch.set_num_threads(3)
        together = run(leaves, mask, 64, near=near)
    finally:
        torch.set_num_threads(before)
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a, b)
    for row in range(4):
        one = [x.detach()[row : row + 1] for x in leaves[:3]]
        out = nystrom_attention(
            *one,
            num_landmarks=64,
            key_padding_mask=mask[row : row + 1],
            conv_weight=leaves[3],
            neighbours=near[0],
            salient_tokens=near[1],
        )
        assert torch.equal(out[0], together[0][row])


@needs_kernel
@pytest.mark.parametrize("near", ONE_EACH)
def test_garbage_in_the_padding_is_never_read(near):
    leaves, mask = problem(width=64, kernel=33)
    clean = run(leaves, mask, 64, near=near)
    spoilt = [x.detach().masked_fill(mask[:, None, :, None], float("nan")) for x in leaves[:3]]
    grad = torch.randn(clean[0].shape, generator=torch.Generator().manual_seed(9))
    found = run(
        [x.requires_grad_() for x in (*spoilt, leaves[3].detach())],
        mask,
        64,
        grad.masked_fill(mask[:, None, :, None], float("nan")),
        near,
    )
    for a, b in zip(found, clean, strict=True):
        assert torch.equal(a, b)


@needs_kernel
@pytest.mark.parametrize("near", ONE_EACH)
def test_what_is_not_finite_in_a_token_stays_visible(near):
    """A guard that looks for NaN has to find it."""
    leaves, _ = problem(rows=2, width=64, kernel=0)
    query = leaves[0].detach().clone()
    query[0, 0, 5, 3] = float("nan")
    choices = {"neighbours": near[0], "salient_tokens": near[1]}
    out = nystrom_attention(query, *leaves[1:], num_landmarks=64, **choices)
    assert not out[0, 0].isfinite().all()
    assert out[0, 1].isfinite().all()
    assert out[1].isfinite().all()


@needs_kernel
@pytest.mark.parametrize("near", ONE_EACH)
def test_any_layout_of_the_inputs(near):
    """Transposed, expanded and sliced tensors, and a gradient that is one number everywhere."""
    leaves, _ = problem(width=64, kernel=33)
    plain = run(leaves, None, 64, torch.ones_like(leaves[0]).contiguous(), near)
    laid_out = [
        leaves[0].detach().contiguous(),
        leaves[1].detach().mT.contiguous().mT,
        torch.cat([leaves[2].detach()] * 2, dim=-1)[..., :64],
        leaves[3].detach(),
    ]
    ones = torch.ones(()).expand(leaves[0].shape)
    found = run([x.requires_grad_() for x in laid_out], None, 64, ones, near)
    for a, b in zip(found, plain, strict=True):
        assert torch.equal(a, b)


@needs_kernel
def test_only_what_suits_it_goes_there():
    def query(width, dtype=torch.float32):
        return torch.empty(1, 1, 100, width, dtype=dtype)

    assert native.suits(query(64), 64)
    assert native.suits(query(16, torch.bfloat16), 256)
    assert native.suits(query(64), 64, 32)
    assert not native.suits(query(64), 64, 24)
    assert not native.suits(query(64), 8)
    assert not native.suits(query(24), 64)
    assert not native.suits(query(64, torch.float64), 64)
    assert not native.suits(query(64, torch.float16), 64)


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """No kernel loaded, none in the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.library.cache_clear()
    yield tmp_path / "nystromformer"
    native.library.cache_clear()


def test_without_a_compiler_one_line_says_so(fresh, monkeypatch, caplog):
    monkeypatch.setenv("CXX", "no-such-compiler")
    leaves, mask = problem(width=64)
    with caplog.at_level(logging.WARNING):
        out, *_ = run(leaves, mask, 64)
        run(leaves, mask, 64)
    assert out.isfinite().all()
    assert [record.getMessage() for record in caplog.records] == [
        "attention runs on PyTorch's operators, at about a third of the speed: its kernel could not be "
        "compiled (no-such-compiler is not installed)"
    ]


def test_a_compiler_that_fails_leaves_nothing_behind(fresh, monkeypatch, caplog, tmp_path):
    compiler = tmp_path / "failing"
    compiler.write_text(
        "#!/bin/sh\n[ \"$1\" = --version ] && exit 0\necho 'fatal: no such option' >&2\nexit 1\n"
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert native.library() is None
    assert "(fatal: no such option)" in caplog.text
    assert list(fresh.iterdir()) == []


def test_the_switch_turns_it_off(fresh, monkeypatch, caplog):
    monkeypatch.setenv(native.SWITCH, "0")
    assert native.library() is None
    assert not fresh.exists()
    assert caplog.text == ""
