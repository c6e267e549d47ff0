"""Nyström attention on a CPU as operators with their own backward pass: `kernel/nystrom.cpp`, see `native`.

The kernel takes each row alone, at its own length, without its padding. Where it cannot compute a call,
`nystrom_attention` composes it of PyTorch's operators; in a record made elsewhere, the operator does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nystromformer.attention import native
from nystromformer.attention.choices import Choices
from nystromformer.attention.composed import composed_nystrom_attention
from nystromformer.attention.native import Problem
from nystromformer.attention.operator import define, empty_like_projections
from nystromformer.attention.recording import is_recorded


def nystrom_attention_on_cpu(
    query_BHND: Tensor,
    key_BHND: Tensor,
    value_BHND: Tensor,
    choices: Choices,
    key_padding_mask_BN: Tensor | None = None,
    conv_weight_H1K1: Tensor | None = None,
) -> Tensor:
    """`nystrom_attention` with landmarks by segment-means and the iterative inverse; 0 at padding.

    Computed in at least float32, whatever the inputs' dtype and autocast. For calls of which `why_not_on_cpu`
    has nothing to say.
    """
    tensors = (query_BHND, key_BHND, value_BHND, key_padding_mask_BN, conv_weight_H1K1)
    numbers = (choices.num_landmarks, choices.pinv_iterations)
    if choices.neighbours is None:
        return _nystrom_attention(*tensors, *numbers)[0]
    salient = min(choices.salient_tokens, query_BHND.shape[2])
    return _neighbours_attention(*tensors, *numbers, choices.neighbours, salient)[0]


@torch.compiler.assume_constant_result
def why_not_on_cpu(
    dtype: torch.dtype, width: int, num_landmarks: int, neighbours: int | None = None
) -> str | None:
    """A clause on what keeps the kernel from it; None where it can."""
    query = torch.empty(1, 1, 1, width, dtype=dtype, device="meta")
    if native.suits(query, num_landmarks, neighbours):
        return None
    return (
        "its kernel takes float32 and bfloat16, with a head width, landmarks and neighbours that are "
        f"multiples of {native.MULTIPLE}, where g++ could compile it"
    )


def _forward(*inputs: Any) -> Sequence[Tensor]:
    problem = Problem(*inputs)
    kept = _kept(problem, zeros=True)
    out_BHND = empty_like_projections(problem.query, zeros=problem.mask is not None)
    if _otherwise(*inputs):
        out_BHND.copy_(_composed(*inputs))
    else:
        native.Call(problem, kept).forward(out_BHND)
    return out_BHND, *kept


def _backward(grad_out: Tensor, *inputs: Any) -> Sequence[Tensor | None]:
    *tensors, kept = inputs[:6]
    problem = Problem(*tensors, *inputs[6:])
    grads = [empty_like_projections(problem.query, zeros=problem.mask is not None) for _ in range(3)]
    grad_HK = native.Call(problem, kept).backward(grad_out, grads)
    weight = problem.conv_weight
    return *grads, None if grad_HK is None or weight is None else grad_HK.view_as(weight).to(weight.dtype)


def _empty(*inputs: Any) -> Sequence[Tensor]:
    problem = Problem(*inputs)
    return empty_like_projections(problem.query), *_kept(problem, zeros=False)


def _kept(problem: Problem, zeros: bool) -> list[Tensor]:
    """Room for what `native.Call` keeps, see there: 0 in a short row.

    With neighbours there is none if every row is exact. Without, its shape does not depend on the length, so
    that an export serves every length; where every row is short nobody writes or reads it: not filled, it is
    an address and no memory.
    """
    b, h, n, d = problem.query.shape
    m, w = problem.num_landmarks, problem.neighbours
    shapes = [(m, d), (m, d), (m, m), (m, d), (m,)]
    if w is not None:
        b = b if is_recorded() or n > max(m, 2 * w) else 0
        shapes = [(m, d), (m, d), (m, m), (m,), (n,), (n,)]
    elif zeros:
        zeros = n > m
    make = problem.query.new_zeros if zeros else problem.query.new_empty
    kept = [make((b, h, *shape), dtype=_computed_in(problem.query)) for shape in shapes]
    if w is not None:
        kept.append(make((b, h, problem.salient_tokens), dtype=torch.int32))
    return kept


def _computed_in(query: Tensor) -> torch.dtype:
    return torch.float64 if query.dtype == torch.float64 else torch.float32


def _otherwise(*inputs: Any) -> Callable[..., Tensor] | None:
    """What computes a call without the kernel; None where that is here."""
    problem = Problem(*inputs)
    suits = native.suits(problem.query, problem.num_landmarks, problem.neighbours)
    return None if suits else _composed


def _composed(*inputs: Any) -> Tensor:
    problem = Problem(*inputs)
    dtype = _computed_in(problem.query)
    choices = Choices(
        problem.num_landmarks,
        problem.iterations,
        neighbours=problem.neighbours,
        salient_tokens=problem.salient_tokens,
    )
    query, key, value = (x.to(dtype) for x in (problem.query, problem.key, problem.value))
    out_BHND = composed_nystrom_attention(query, key, value, choices, problem.mask, problem.conv_weight)
    return out_BHND.to(problem.query.dtype)


def _define(name: str, *more_numbers: str, outputs: int) -> Callable[..., Sequence[Tensor]]:
    return define(
        name,
        ("query", "key", "value", "key_padding_mask?", "conv_weight?"),
        ("num_landmarks", "iterations", *more_numbers),
        outputs=outputs,
        gradients=("query", "key", "value", "conv_weight"),
        device_types=("cpu",),
        forward=_forward,
        backward=_backward,
        empty=_empty,
        otherwise=_otherwise,
    )


_nystrom_attention = _define("nystrom_attention", outputs=6)
_neighbours_attention = _define("neighbours_attention", "neighbours", "salient_tokens", outputs=8)
