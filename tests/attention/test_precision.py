"""What is asked of PyTorch about autocast and TF32, in every order that a program can set them."""

import contextlib
import subprocess
import sys

import pytest
import torch

from nystromformer import nystrom_attention
from nystromformer.attention.performer import PerformerAttention
from nystromformer.attention.precision import (
    allow_tf32,
    as_product,
    full_float32,
    product_dtype,
    tf32_allowed,
    without_autocast,
)

from .equations import _one_head

BEFORE = {
    "pass": False,
    "torch.set_float32_matmul_precision('high')": True,
    "torch.backends.cuda.matmul.allow_tf32 = True": True,
    "torch.backends.fp32_precision = 'tf32'": True,
    "torch.backends.cuda.matmul.fp32_precision = 'tf32'": True,
    "torch.backends.fp32_precision = 'tf32'; torch.backends.cuda.matmul.fp32_precision = 'ieee'": False,
}
"""What a program may have said, and whether its products are in TF32 then."""

PROGRAM = """
import os, sys, torch
from nystromformer.attention.precision import allow_tf32, full_float32, tf32_allowed
newer = hasattr(torch.backends.cuda.matmul, "fp32_precision")
for before in {cases}:
    if "fp32_precision" in before and not newer:
        continue
    child = os.fork()  # what was said by the newer form cannot be taken back
    if not child:
        exec(before)
        found = [tf32_allowed()]
        with full_float32(torch.zeros(1)):
            found.append(tf32_allowed())
        found.append(tf32_allowed())
        for allowed in (True, False):
            allow_tf32(allowed)
            assert torch.backends.cuda.matmul.allow_tf32 == allowed
            if newer:
                assert (torch.backends.cudnn.conv.fp32_precision == "tf32") == allowed
            found.append(tf32_allowed())
        print(before, found, sep=": ", flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_tf32_is_known_however_a_program_set_it():
    """A warning is an error there."""
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", PROGRAM.format(cases=list(BEFORE))],
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    newer = hasattr(torch.backends.cuda.matmul, "fp32_precision")
    assert done.stdout.splitlines() == [
        f"{before}: {[expected, False, expected, True, False]}"
        for before, expected in BEFORE.items()
        if newer or "fp32_precision" not in before
    ], done.stderr


def test_an_export_after_precision_was_chosen():
    """It reads the older flag, which PyTorch refuses where the newer one was written beside it."""
    for allowed in (True, False):
        allow_tf32(allowed)
        assert torch.export.export(torch.nn.Linear(4, 4), (torch.zeros(1, 4),)) is not None


def test_full_precision_ends_where_it_began():
    allow_tf32(True)
    try:
        with contextlib.suppress(KeyError), full_float32(torch.zeros(1)):
            assert not tf32_allowed()
            raise KeyError
        assert tf32_allowed()
    finally:
        allow_tf32(False)


def test_products_are_in_the_type_that_autocast_gives_them():
    x = torch.randn(4, 4)
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        factor = x.to(dtype)
        assert as_product(factor) is factor
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert product_dtype(factor) == (factor @ factor).dtype
            with without_autocast(factor):
                assert product_dtype(factor) == dtype
    assert product_dtype(torch.empty(1, device="meta")) == torch.float32


@pytest.mark.parametrize("iterations", [6, None])
def test_shapes_without_memory(iterations):
    """A meta device has no autocast, and asking it for one raises."""
    leaves = [torch.empty(2, 3, 40, 16, device="meta", requires_grad=True) for _ in range(3)]
    mask = torch.zeros(2, 40, dtype=torch.bool, device="meta")
    for padding in (None, mask):
        out = nystrom_attention(
            *leaves, num_landmarks=8, key_padding_mask=padding, pinv_iterations=iterations
        )
        assert (out.shape, out.device.type) == ((2, 3, 40, 16), "meta")
        if iterations is not None:
            assert all(grad.shape == out.shape for grad in torch.autograd.grad(out.sum(), leaves))
    performer = PerformerAttention(16, num_features=8).to("meta")
    assert performer(*leaves).shape == leaves[0].shape


def test_the_reference_computes_where_its_inputs_are():
    """On a GPU, that is; a meta device shows the same."""
    inputs = [torch.empty(40, 8, device="meta") for _ in range(3)]
    for neighbours in (None, 4):
        out = _one_head(*inputs, m=8, iterations=6, neighbours=neighbours, salient=2)
        assert out.device.type == "meta"
