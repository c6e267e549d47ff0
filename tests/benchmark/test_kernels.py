"""The work of the GPU's kernels on paper: the operations are those of the kernels, the page has the table."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import nystromformer

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs the package triton")
ROOT = Path(__file__).parents[2]

COUNTED = """
import numpy, torch
from triton.runtime.interpreter import InterpreterBuilder
from nystromformer.attention.gpu import launch, plan
from nystromformer.benchmark.kernels import kernel_work

done = 0
dot = InterpreterBuilder.create_dot


def counted(self, a, b, *more):
    global done
    done += 2 * numpy.prod(a.data.shape) * b.data.shape[-1]
    return dot(self, a, b, *more)


InterpreterBuilder.create_dot = counted
query, key, value, grad = torch.randn(4, 2, 3, 128, 16)
attention = launch.Attention(query, key, value, None, None, 16, 6)
_, *kept = attention.forward()
forward = done
attention.backward(grad, kept)
work = kernel_work(2, 128, h=3, d=16, m=16, k=None)
products = [0 if w.kernel.startswith(("means", "sum")) else w.flops for w in work]
assert (forward, done) == (sum(products[:4]), sum(products)), (forward, done, products)

from nystromformer.attention.composed import composed_nystrom_attention
from nystromformer.attention.options import NystromOptions
from nystromformer.benchmark.kernels import neighbour_work

done = 0
inputs = [x.requires_grad_() for x in (query, key, value, torch.randn(3, 1, 33, 1))]
options = NystromOptions(16, neighbours=16)
out = composed_nystrom_attention(*inputs[:3], options, None, inputs[3], kernels=True)
forward = done
out.backward(grad)
sums = ("means", "whole", "sum")
sizes = plan.Sizes(2, 3, 128, 16, 16, 33, torch.float32, False, 1, True)
work = neighbour_work(2, 128, h=3, d=16, m=16, w=16)
products = [0 if w.kernel.startswith(sums) else w.flops for w in work]
window = 2 * sizes.tile / 128  # float32 has narrower tiles
products = [x * window if w.kernel.startswith("convolution") else x for w, x in zip(work, products)]
assert (forward, done) == (sum(products[:7]), sum(products)), (forward, done, products)
"""


def test_the_operations_are_those_of_the_kernels():
    done = subprocess.run(
        [sys.executable, "-c", COUNTED],
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        cwd=ROOT, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def test_every_kernel_that_is_launched_is_counted():
    from nystromformer.benchmark.kernels import kernel_work, neighbour_work

    def launched(*files):
        folder = Path(nystromformer.__file__).parent / "attention/gpu"
        source = "".join((folder / file).read_text() for file in files)
        found = set(re.findall(r"(\w+)_kernel\[", source))
        assert found
        return found

    # `mix` joins the parts on the way, where it has a head's matrices on chip.
    assert launched("launch.py") - {"join"} <= {work.kernel for work in kernel_work(128, 512)}
    assert launched("neighbours.py", "operator.py") <= {work.kernel for work in neighbour_work(128, 512)}


def test_long_rows_move_their_tensors_and_little_else():
    """6 forward, 12 backward; the floor has 11 of them."""
    from nystromformer.benchmark.kernels import floor_bytes, kernel_work

    for n in (8192, 131_072):
        moved = sum(work.bytes for work in kernel_work(8, n))
        assert 18 / 11 <= moved / floor_bytes(8, n) <= 18 / 11 * (1 + 1200 / n)


def test_the_page_has_the_table():
    from nystromformer.benchmark.kernels import neighbour_work, table

    page = (ROOT / "docs/attention.md").read_text(encoding="utf-8")
    assert "\n".join(table()) in page
    assert "\n".join(table(neighbour_work)) in page
