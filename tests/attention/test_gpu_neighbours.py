"""The Triton kernels of exact neighbours, against the path composed of PyTorch's operators in float64.

As test_gpu_kernels.py: on a GPU where there is one, else in Triton's interpreter, in a process of their own.
"""

import math
import os
import subprocess
import sys

import pytest
import torch

from nystromformer.attention.composed import composed_nystrom_attention
from nystromformer.attention.gpu.support import why_not_neighbours_on_gpu
from nystromformer.attention.neighbours import LARGEST_RATIO
from nystromformer.attention.options import NystromOptions

from .on_kernels import (
    DEVICE,
    HAS_TRITON,
    VERSION,
    beside_and_far_apart,
    check_far_apart,
    error,
    kernels,
    leaves,
    mask_of,
)

needs_interpreter = pytest.mark.skipif(
    VERSION < (3, 7), reason="needs triton 3.7: earlier interpreters fail with NumPy 2.4"
)


@needs_interpreter
def test_in_the_interpreter():
    """The tests below, all that need no GPU."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "not interpreter"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "passed" in done.stdout


def check(inputs, mask, m, neighbours, tolerance):
    """Output and gradients against float64."""
    weight = inputs[3] if len(inputs) > 3 else None
    obstacle = why_not_neighbours_on_gpu(inputs[0], m, neighbours)
    if obstacle and "as this GPU needs" in obstacle:
        pytest.skip(obstacle)
    assert obstacle is None
    options = NystromOptions(m, neighbours=neighbours)
    out = composed_nystrom_attention(*inputs[:3], options, mask, weight, kernels=True)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected = composed_nystrom_attention(*exact[:3], options, mask, exact[3] if len(exact) > 3 else None)
    seed = torch.randn_like(out)
    assert out.dtype == inputs[0].dtype
    assert error(out, expected) <= tolerance
    found = torch.autograd.grad(out, inputs, seed)
    wanted = torch.autograd.grad(expected, exact, seed.double())
    for name, a, b in zip(("query", "key", "value", "weight"), found, wanted, strict=False):
        assert error(a, b) <= tolerance, name
    return out, found


@kernels
@pytest.mark.parametrize("mask", ["none", "right", "scattered", "an empty row"])
def test_equals_the_composed_path(mask):
    torch.manual_seed(0)
    check(leaves(), mask_of(mask), 9, 16, 1e-5)


@kernels
@pytest.mark.parametrize("sharpness", [2, 4])
def test_landmarks_that_look_at_single_tokens(sharpness):
    """Their ratio ρ is cut; its gradient passes through the cut."""
    torch.manual_seed(6)
    m, n, d = 8, 200, 16
    query, key, value = (x.detach() for x in leaves(rows=2, heads=2, n=n, d=d, k=None))
    query = 0.3 * query + torch.randn(2, 2, m, d, device=DEVICE).repeat_interleave(n // m, dim=2)
    query, key = sharpness * query, sharpness * key
    query_means, key_means = (x.unflatten(2, (m, n // m)).mean(dim=3) for x in (query, key))
    log_ratio = (query_means @ key.mT / d**0.5).logsumexp(dim=-1)
    log_ratio -= (query_means @ key_means.mT / d**0.5).logsumexp(dim=-1)
    assert (log_ratio > math.log(LARGEST_RATIO * n / m)).float().mean() > 0.5
    check([x.requires_grad_() for x in (query, key, value)], None, m, 16, 1e-5)


@kernels
def test_the_cut_is_the_composed_paths():
    from nystromformer.attention.gpu import far

    assert far.LARGEST_RATIO.value == LARGEST_RATIO


@kernels
@pytest.mark.parametrize("k", [1, 5, 33])
def test_convolution_alone(k):
    from nystromformer.attention.convolution import residual_convolution
    from nystromformer.attention.gpu.operator import convolution_on_gpu

    torch.manual_seed(7)
    _, _, value, weight = leaves(rows=2, heads=3, n=97, d=24, k=k)
    exact = [x.detach().double().requires_grad_() for x in (value, weight)]
    out, expected = convolution_on_gpu(value, weight), residual_convolution(*exact)
    seed = torch.randn_like(out)
    assert error(out, expected) <= 1e-5
    found = torch.autograd.grad(out, (value, weight), seed)
    for a, b in zip(found, torch.autograd.grad(expected, exact, seed.double()), strict=True):
        assert error(a, b) <= 1e-5


@kernels
@pytest.mark.parametrize(
    ("m", "d", "n", "w"),
    [(1, 8, 40, 16), (16, 16, 49, 16), (20, 32, 130, 32), (33, 64, 140, 64), (64, 24, 97, 16)],
)
def test_sizes(m, d, n, w):
    torch.manual_seed(1)
    check(leaves(rows=2, heads=2, n=n, d=d, k=None), None, m, w, 1e-5)


@kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mask", ["none", "scattered"])
def test_half_precision(dtype, mask):
    torch.manual_seed(2)
    check(leaves(dtype, k=None), mask_of(mask), 9, 16, 2e-2)


@kernels
def test_the_same_bits_again():
    torch.manual_seed(3)
    inputs = leaves()
    first, second = (check(inputs[:3], mask_of("right"), 9, 16, 1) for _ in range(2))
    assert torch.equal(first[0], second[0])


@kernels
def test_strides_of_any_kind():
    torch.manual_seed(4)
    inputs = [x.detach() for x in leaves(k=None)]
    laid_out = [
        inputs[0].contiguous(),
        inputs[1].mT.contiguous().mT,
        torch.cat([inputs[2]] * 2, -1)[..., :24],
    ]
    check([x.requires_grad_() for x in laid_out], None, 9, 16, 1e-5)


@kernels
@pytest.mark.parametrize("axis", ["row", "head", "position"])
def test_entries_further_apart_than_32_bits_count(axis):
    shapes = {"row": (3, 1, 40, 16), "head": (1, 3, 40, 16), "position": (1, 1, 40, 16)}
    near, far = beside_and_far_apart(axis, shapes)
    weight = torch.randn(shapes[axis][1], 1, 5, 1, device=DEVICE)
    options = NystromOptions(9, neighbours=16)
    check_far_apart(
        lambda inputs: composed_nystrom_attention(*inputs, options, None, weight, kernels=True), near, far
    )


@kernels
def test_pytorchs_own_check_of_the_operator():
    from nystromformer.attention.gpu import neighbours, operator  # noqa: F401

    torch.manual_seed(5)
    b, h, n, d, m, w = 2, 1, 40, 8, 4, 16
    c = -(-n // w)
    tokens = [torch.randn(b, h, n, d, device=DEVICE, requires_grad=True) for _ in range(3)]
    shared = [
        torch.randn(*shape, device=DEVICE, requires_grad=True)
        for shape in ((b, h, m, d), (b, h, m, d), (b, h, m, m), (b, h, m))
    ]
    count = torch.tensor([n, 33], dtype=torch.int32, device=DEVICE)
    far_counts = torch.rand(b, c, m, device=DEVICE)
    torch.library.opcheck(
        torch.ops.nystromformer.near_and_far_gpu.default, (*tokens, count, *shared, far_counts, w)
    )
    torch.library.opcheck(torch.ops.nystromformer.inverse_gpu.default, (*shared[:2], 6, 0))
    mask = torch.arange(n, device=DEVICE) >= count[:, None]
    torch.library.opcheck(torch.ops.nystromformer.segment_means_gpu.default, (*tokens[:2], mask, m))
    weight = torch.randn(h, 1, 5, 1, device=DEVICE, requires_grad=True)
    torch.library.opcheck(torch.ops.nystromformer.convolution_gpu.default, (tokens[2], weight))


def test_tiles_that_hopper_cannot_have_are_refused(monkeypatch):
    class Query:
        device, shape, dtype = torch.device("cuda", 0), (1, 1, 200, 32), torch.bfloat16

    monkeypatch.setattr("nystromformer.attention.gpu.support._capability", lambda index: (9, 0))
    assert "as this GPU needs" in why_not_neighbours_on_gpu(Query, 64, 64)
    # What else there is to say needs a real tensor.
    monkeypatch.setattr("nystromformer.attention.gpu.support.why_not_on_gpu", lambda *_: None)
    for width, m, w in ((64, 64, 64), (32, 32, 32)):
        Query.shape = (1, 1, 200, width)
        assert why_not_neighbours_on_gpu(Query, m, w) is None


@needs_interpreter
def test_an_address_outside_of_a_kernels_tensors_is_noticed():
    """By the interpreter as the tests have it, see interpreted.py."""
    code = (
        "from tests.attention import interpreted; interpreted.install()\n"
        "import torch\n"
        "from nystromformer.attention.gpu.operator import segment_means_on_gpu\n"
        "query = torch.randn(1, 1, 40, 16)\n"
        "short = torch.randn(1, 1, 20, 16)\n"
        "segment_means_on_gpu(query, short, None, 4)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "an address outside of its tensors" in done.stderr, done.stderr[-2000:]


def test_what_the_kernels_cannot_do_is_said(monkeypatch):
    monkeypatch.setattr("nystromformer.attention.gpu.support.INTERPRETED", True)
    query = torch.empty(1, 1, 200, 64)
    for arguments, words in (
        ((query, 16, 24), "neighbours=24 is not one of 16, 32, 64"),
        ((query, 16, 16, 16), "only salient token is the row's first"),
        ((query[:, :, :128], 16, 64), "two blocks of 64"),
        ((query, 128, 64), "more than 64 of width 64"),
        ((query, 64, 16), None if HAS_TRITON else "triton"),
    ):
        found = why_not_neighbours_on_gpu(*arguments)
        assert found is None if words is None else words in found
