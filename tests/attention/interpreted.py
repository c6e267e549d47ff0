"""What Triton's interpreter lacks: products of bfloat16, and a word about addresses outside of the tensors.

The interpreter reads and writes wherever a kernel says. A GPU ends the process for it, or worse, does not.
"""

from bisect import bisect_right

import numpy
import torch
import triton.language as tl
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorHandle

_within: list[tuple[int, int]] = []
"""First and last byte of the tensors of the kernel that runs, in order."""


def install() -> None:
    """Once, in a process with TRITON_INTERPRET=1."""
    create_dot, run = InterpreterBuilder.create_dot, GridExecutor.__call__
    masked_load, masked_store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def widened(x):
        """The interpreter keeps bfloat16 as 16-bit integers, and forgets to convert them for a product."""
        if x.dtype.scalar != tl.bfloat16:
            return x
        return TensorHandle((x.data.astype(numpy.uint32) << 16).view(numpy.float32), tl.float32)

    def noted(self, *arguments, **named):
        _within[:] = sorted(map(_bytes_of, filter(torch.is_tensor, [*arguments, *named.values()])))
        return run(self, *arguments, **named)

    def load(self, pointers, mask, *rest):
        _check(pointers, mask, "reads")
        return masked_load(self, pointers, mask, *rest)

    def store(self, pointers, value, mask, *rest):
        _check(pointers, mask, "writes")
        return masked_store(self, pointers, value, mask, *rest)

    InterpreterBuilder.create_dot = lambda self, a, b, *rest: create_dot(self, widened(a), widened(b), *rest)
    GridExecutor.__call__ = noted
    InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store = load, store


def _bytes_of(x: torch.Tensor) -> tuple[int, int]:
    if x.numel() == 0:
        return x.data_ptr(), x.data_ptr() - 1
    entries = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.data_ptr(), x.data_ptr() + entries * x.itemsize - 1


def _check(pointers, mask, does: str) -> None:
    """Every address that is not masked lies in one of the tensors."""
    addresses = pointers.data[numpy.broadcast_to(mask.data.astype(bool), pointers.data.shape)]
    if addresses.size == 0:
        return
    size = max(1, pointers.dtype.scalar.element_ty.primitive_bitwidth // 8)
    for address in {int(addresses.min()), int(addresses.max())}:
        place = bisect_right(_within, (address, 2**64)) - 1
        if place < 0 or address + size - 1 > _within[place][1]:
            raise IndexError(f"the kernel {does} an address outside of its tensors")
