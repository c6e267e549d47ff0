"""Where the tests of the Triton kernels compute, a GPU or Triton's interpreter, and on what."""

import importlib.metadata
import importlib.util

import pytest
import torch

from nystromformer.attention.gpu.support import INTERPRETED

HAS_TRITON = importlib.util.find_spec("triton") is not None
VERSION = tuple(map(int, importlib.metadata.version("triton").split(".")[:2])) if HAS_TRITON else (0, 0)
ON_GPU = torch.cuda.is_available() and not INTERPRETED
DEVICE = "cuda" if ON_GPU else "cpu"

kernels = pytest.mark.skipif(
    not (HAS_TRITON and (ON_GPU or INTERPRETED)),
    reason="needs the package triton, and a GPU or TRITON_INTERPRET=1",
)
gpu = pytest.mark.skipif(not ON_GPU, reason="needs a GPU")

N = 75
MASKS = {
    "none": None,
    "right": [75, 41, 9, 8],
    "scattered": "half",
    "an empty row": [75, 20, 1, 0],
}
"""With 9 landmarks: rows of exactly m and fewer real tokens are among them."""


if INTERPRETED and HAS_TRITON:
    from .interpreted import install

    install()


def mask_of(kind):
    made = MASKS[kind]
    if made is None:
        return None
    if made == "half":
        mask = torch.rand(4, N) < 0.5
        mask[:, 0], mask[3] = False, True
        mask[3, [3, 30, 31, 74]] = False
        return mask.to(DEVICE)
    return (torch.arange(N) >= torch.tensor(made)[:, None]).to(DEVICE)


def leaves(dtype=torch.float32, rows=4, heads=1, n=N, d=24, k=5):
    """Queries, keys and values as a model passes them, and the convolution's kernel."""
    made = [torch.randn(rows, n, heads, d).to(DEVICE, dtype).transpose(1, 2) for _ in range(3)]
    if k is not None:
        made.append(torch.randn(heads, 1, k, 1, device=DEVICE) / k**0.5)
    return [x.requires_grad_() for x in made]


def error(found, expected):
    """Relative to the whole, in the Frobenius norm; not a number where one of `found` is none."""
    return ((found.double() - expected).norm() / expected.norm()).item()


def beside_and_far_apart(axis, shapes):
    """Three tensors of float16 (B, H, N, D), and the same with an axis whose entries are so far apart that
    their places need more than 32 bits. The steps do not. Memory that is not touched costs nothing.

    Args:
        shapes: of each axis.
    """
    torch.manual_seed(14)
    rows, heads, n, d = shape = shapes[axis]
    one = 3 * n * d
    step = {"row": 2**30 + one, "head": 2**30 + one, "position": 2**31 // (n - 1) + one}[axis]
    strides = {"row": (step, n * d, d), "head": (n * d, step, d), "position": (n * d, n * d, step)}[axis]
    last = step * (n - 1 if axis == "position" else 2)
    assert step < 2**31 < last
    memory = torch.empty(last + 2 * one, dtype=torch.float16, device=DEVICE)
    apart = n * d if axis != "position" else d
    far = [memory.as_strided(shape, (*strides, 1), apart * number) for number in range(3)]
    near = [torch.randn(shape, device=DEVICE).half() for _ in far]
    for there, here in zip(far, near, strict=True):
        there.copy_(here)
    return [[x.detach().requires_grad_() for x in inputs] for inputs in (near, far)]


def check_far_apart(attention, near, far):
    """The same bits in both directions."""
    expected, found = attention(near), attention(far)
    assert torch.equal(found, expected)
    seed = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad(found, far, seed), torch.autograd.grad(expected, near, seed), strict=True
    ):
        assert torch.equal(a, b)
