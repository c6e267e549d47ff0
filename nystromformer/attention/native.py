"""Nyström attention on a CPU as operators with their own backward pass: `kernel/nystrom.cpp`, called on
tensors' memory.

The kernel takes each row alone, at its own length, without its padding. The first use compiles it with g++
(seconds), see `build`. Where there is no g++, or `NYSTROMFORMER_CPU_KERNEL=0` is set, or shapes do not suit
it, `composed.py` computes the same with PyTorch's operators, at about a third of the speed; in a record made
elsewhere, the operator calls that itself.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nystromformer.attention import build
from nystromformer.attention.composed import composed_nystrom_attention
from nystromformer.attention.operator import NystromOperator, define, empty_like_projections
from nystromformer.attention.options import NystromOptions
from nystromformer.attention.precision import at_least_float32
from nystromformer.attention.recording import is_recorded

logger = logging.getLogger(__name__)

SWITCH = "NYSTROMFORMER_CPU_KERNEL"
"""Environment variable; 0 keeps to PyTorch's operators."""
MULTIPLE = 16
"""Landmarks, head width and neighbours have to be multiples of so many: the widest vector's lanes."""
DTYPES = (torch.float32, torch.bfloat16)


def nystrom_attention_on_cpu(
    query_BHND: Tensor,
    key_BHND: Tensor,
    value_BHND: Tensor,
    options: NystromOptions,
    key_padding_mask_BN: Tensor | None = None,
    conv_weight_H1K1: Tensor | None = None,
) -> Tensor:
    """`nystrom_attention` with landmarks by segment-means and the iterative inverse; 0 at padding.

    Computed in at least float32, whatever the inputs' dtype and autocast. For calls of which `why_not_on_cpu`
    has nothing to say.
    """
    tensors = (query_BHND, key_BHND, value_BHND, key_padding_mask_BN, conv_weight_H1K1)
    numbers = (options.num_landmarks, options.pinv_iterations)
    if options.neighbours is None:
        return _nystrom_attention(*tensors, *numbers)[0]
    salient = min(options.salient_tokens, query_BHND.shape[2])
    return _neighbours_attention(*tensors, *numbers, options.neighbours, salient)[0]


@torch.compiler.assume_constant_result
def why_not_on_cpu(
    dtype: torch.dtype, width: int, num_landmarks: int, neighbours: int | None = None
) -> str | None:
    """A clause on what keeps the kernel from it; None where it can."""
    query = torch.empty(1, 1, 1, width, dtype=dtype, device="meta")
    if suits(query, num_landmarks, neighbours):
        return None
    return (
        "its kernel takes float32 and bfloat16, with a head width, landmarks and neighbours that are "
        f"multiples of {MULTIPLE}, where g++ could compile it"
    )


def suits(query_BHND: Tensor, num_landmarks: int, neighbours: int | None = None) -> bool:
    """Whether the kernel computes this; compiles it where it has to know."""
    return (
        query_BHND.dtype in DTYPES
        and query_BHND.shape[-1] % MULTIPLE == 0
        and num_landmarks % MULTIPLE == 0
        and (neighbours or 0) % MULTIPLE == 0
        and library() is not None
    )


@dataclass(eq=False)
class Problem(NystromOperator):
    """As `kernel/nystrom.cpp` computes it."""

    name = "nystrom_attention"
    device_types = ("cpu",)

    @property
    def near(self) -> tuple[int | None, int]:
        """w and S, at most N."""
        return None, 1

    def forward(self) -> Sequence[Tensor]:
        kept = self._kept(zeros=True)
        out_BHND = self._empty(zeros=self.key_padding_mask is not None)
        if self.is_suited():
            _Call(self, kept).forward(out_BHND)
        else:
            out_BHND.copy_(self.composed())
        return out_BHND, *kept

    def backward(self, grad_out: Tensor, kept: Sequence[Tensor]) -> Sequence[Tensor | None]:
        grads = [self._empty(zeros=self.key_padding_mask is not None) for _ in range(3)]
        grad_HK, weight = _Call(self, kept).backward(grad_out, grads), self.conv_weight
        return *grads, None if grad_HK is None or weight is None else grad_HK.view_as(weight).to(weight.dtype)

    def empty(self) -> Sequence[Tensor]:
        return self._empty(zeros=False), *self._kept(zeros=False)

    def is_suited(self) -> bool:
        return suits(self.query, self.num_landmarks, self.near[0])

    def composed(self) -> Tensor:
        neighbours, salient_tokens = self.near
        options = NystromOptions(
            self.num_landmarks, self.iterations, neighbours=neighbours, salient_tokens=salient_tokens
        )
        query, key, value = (x.to(at_least_float32(x)) for x in (self.query, self.key, self.value))
        tensors = (self.key_padding_mask, self.conv_weight)
        return composed_nystrom_attention(query, key, value, options, *tensors).to(self.query.dtype)

    def _empty(self, zeros: bool) -> Tensor:
        return empty_like_projections(self.query, zeros)

    def _kept(self, zeros: bool) -> list[Tensor]:
        """Room for what `_Call` keeps, see there: 0 in a short row.

        With neighbours there is none if every row is exact. Without, its shape does not depend on the length,
        so that an export serves every length; where every row is short nobody writes or reads it: not filled,
        it is an address and no memory.
        """
        b, h, n, d = self.query.shape
        m, (w, salient_tokens) = self.num_landmarks, self.near
        shapes = [(m, d), (m, d), (m, m), (m, d), (m,)]
        if w is not None:
            b = b if is_recorded() or n > max(m, 2 * w) else 0
            shapes = [(m, d), (m, d), (m, m), (m,), (n,), (n,)]
        elif zeros:
            zeros = n > m
        make = self.query.new_zeros if zeros else self.query.new_empty
        kept = [make((b, h, *shape), dtype=at_least_float32(self.query)) for shape in shapes]
        if w is not None:
            kept.append(make((b, h, salient_tokens), dtype=torch.int32))
        return kept


@dataclass(eq=False)
class _ProblemWithNeighbours(Problem):
    neighbours: int
    salient_tokens: int

    name = "neighbours_attention"
    outputs = 8

    @property
    def near(self) -> tuple[int | None, int]:
        return self.neighbours, self.salient_tokens


_nystrom_attention, _neighbours_attention = define(Problem), define(_ProblemWithNeighbours)


# --- the C structures ---------------------------------------------------------------------------------


class _Strided(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("row", "head", "position"))]


_COUNTS = ("rows", "heads", "positions", "width", "landmarks", "kernel", "iterations", "threads")
_KEPT = ("query_landmarks", "key_landmarks", "inverse_T", "gathered", "log_sums")
_NEAR = ("near_log_sums", "far_log_sums", "salient_ranks")


class _Problem(ctypes.Structure):
    """`Problem` of kernel/problem.h, field by field."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in (*_COUNTS, "neighbours", "salient", "half")),
        ("scale", ctypes.c_float),
        ("padding", ctypes.c_void_p),
        ("conv_weight", ctypes.c_void_p),
        *((name, _Strided) for name in ("query", "key", "value", "out")),
        *((name, ctypes.c_void_p) for name in (*_KEPT, *_NEAR)),
        *((name, _Strided) for name in ("grad_out", "grad_query", "grad_key", "grad_value")),
        ("grad_conv_weight", ctypes.c_void_p),
    ]


class _Call:
    """One problem in C, and references that keep its memory alive until it has run.

    Args:
        kept: float32, contiguous: Q̃ and K̃ (B, H, M, D), Zᵀ (B, H, M, M), B̃ V (B, H, M, D) and the
            logarithms of the sums of B̃'s rows before they were divided by them (B, H, M). With
            `neighbours` without B̃ V, but with three more: the logarithms of each real token's sums over
            near keys and over K̃, (B, H, N) in the order of the tokens, and the salient tokens' places in
            that order, int32, (B, H, S).
    """

    def __init__(self, problem: Problem, kept: Sequence[Tensor]) -> None:
        b, h, n, d = problem.query.shape
        neighbours, salient_tokens = problem.near
        self._weight_HK: Tensor | None = None
        if problem.conv_weight is not None:
            self._weight_HK = problem.conv_weight.reshape(h, -1).float().contiguous()
        self._problem = _Problem(
            rows=b,
            heads=h,
            positions=n,
            width=d,
            landmarks=problem.num_landmarks,
            kernel=0 if self._weight_HK is None else self._weight_HK.shape[1],
            iterations=problem.iterations,
            threads=torch.get_num_threads(),
            neighbours=neighbours or 0,
            salient=salient_tokens,
            half=problem.query.dtype == torch.bfloat16,
            scale=d**-0.5,
        )
        self._alive: list[Tensor] = []
        if problem.key_padding_mask is not None:
            self._problem.padding = self._address(problem.key_padding_mask.contiguous())
        if self._weight_HK is not None:
            self._problem.conv_weight = self._address(self._weight_HK)
        names = (*(name for name in _KEPT if name != "gathered"), *_NEAR) if neighbours else _KEPT
        for name, tensor in zip(names, kept, strict=True):
            setattr(self._problem, name, self._address(tensor))
        self._set(query=problem.query, key=problem.key, value=problem.value)

    def forward(self, out_BHND: Tensor) -> None:
        """Write the output at real tokens, and of rows of more than M tokens what `backward` reads."""
        self._set(out=out_BHND)
        self._run("nystrom_forward")

    def backward(self, grad_out_BHND: Tensor, grads_BHND: Sequence[Tensor]) -> Tensor | None:
        """Write the gradients of the queries, keys and values; returns that of the convolution's kernel,
        (H, K) float32, or None where there is no convolution."""
        grad_query, grad_key, grad_value = grads_BHND
        self._set(grad_out=grad_out_BHND, grad_query=grad_query, grad_key=grad_key, grad_value=grad_value)
        if self._weight_HK is None:
            self._run("nystrom_backward")
            return None
        # One sum a row and head, added here in one order: threads must not decide it.
        sums_BHK = self._weight_HK.new_zeros(len(grad_out_BHND), *self._weight_HK.shape)
        self._problem.grad_conv_weight = sums_BHK.data_ptr()
        self._run("nystrom_backward")
        return sums_BHK.sum(dim=0)

    def _address(self, x: Tensor) -> int:
        self._alive.append(x)
        return x.data_ptr()

    def _set(self, **tensors_BHND: Tensor) -> None:
        """Name tensors of the problem; those that are written have contiguous tokens already."""
        for name, x in tensors_BHND.items():
            if x.stride(-1) != 1:
                x = x.contiguous()
            setattr(self._problem, name, _Strided(self._address(x), *x.stride()[:3]))

    def _run(self, function: str) -> None:
        kernel = library()
        assert kernel is not None, "suits() was asked first"
        getattr(kernel, function)(ctypes.byref(self._problem))


# --- the library --------------------------------------------------------------------------------------


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernel, or None with one line in the log that says why."""
    if os.environ.get(SWITCH) == "0":
        return None
    try:
        kernel = build.load()
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning(
            "attention runs on PyTorch's operators, at about a third of the speed: its kernel could not be "
            "compiled (%s)",
            build.told(error),
        )
        return None
    kernel.problem_size.restype = ctypes.c_int64
    if kernel.problem_size() != ctypes.sizeof(_Problem):
        raise RuntimeError(f"{build.SOURCES / 'problem.h'} and {Path(__file__).name} disagree about Problem")
    return kernel
