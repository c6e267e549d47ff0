"""Nyström attention on a CPU as operators with their own backward pass: `kernel/nystrom.cpp`, see `native`.

The kernel takes each row alone, at its own length, without its padding. Where it cannot compute a call,
`nystrom_attention` composes it of PyTorch's operators; in a record made elsewhere, the operator does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nystromformer.attention import native
from nystromformer.attention.composed import composed_nystrom_attention
from nystromformer.attention.operator import define, empty_like_projections


def nystrom_attention_on_cpu(
    query_BHND: Tensor,
    key_BHND: Tensor,
    value_BHND: Tensor,
    key_padding_mask_BN: Tensor | None,
    conv_weight_H1K1: Tensor | None,
    num_landmarks: int,
    iterations: int,
    neighbours: int | None = None,
    salient_tokens: int = 1,
) -> Tensor:
    """`nystrom_attention` with landmarks by segment-means and the iterative inverse; 0 at padding.

    Computed in at least float32, whatever the inputs' dtype and autocast. For calls of which `why_not_on_cpu`
    has nothing to say.
    """
    tensors = (query_BHND, key_BHND, value_BHND, key_padding_mask_BN, conv_weight_H1K1)
    if neighbours is None:
        return _nystrom_attention(*tensors, num_landmarks, iterations)[0]
    salient = min(salient_tokens, query_BHND.shape[2])
    return _neighbours_attention(*tensors, num_landmarks, iterations, neighbours, salient)[0]


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


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None,
    conv_weight: Tensor | None,
    num_landmarks: int,
    iterations: int,
    neighbours: int | None = None,
    salient_tokens: int = 1,
) -> Sequence[Tensor]:
    tensors, numbers = (query, key, value, key_padding_mask), (num_landmarks, iterations)
    near = (neighbours, salient_tokens)
    out_BHND = empty_like_projections(query, zeros=key_padding_mask is not None)
    kept = _kept(query, num_landmarks, *near, zeros=True)
    if composed := _otherwise(*tensors, conv_weight, *numbers, *near):
        out_BHND.copy_(composed(*tensors, conv_weight, *numbers, *near))
    else:
        call = native.Call(*tensors, _kernels_of(conv_weight), *numbers, kept, *near)
        call.forward(out_BHND)
    return out_BHND, *kept


def _backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None,
    conv_weight: Tensor | None,
    kept: Sequence[Tensor],
    num_landmarks: int,
    iterations: int,
    neighbours: int | None = None,
    salient_tokens: int = 1,
) -> Sequence[Tensor | None]:
    grads = [empty_like_projections(query, zeros=key_padding_mask is not None) for _ in range(3)]
    inputs = (query, key, value, key_padding_mask, _kernels_of(conv_weight), num_landmarks, iterations)
    grad_HK = native.Call(*inputs, kept, neighbours, salient_tokens).backward(grad_out, grads)
    if conv_weight is None or grad_HK is None:
        return *grads, None
    return *grads, grad_HK.view_as(conv_weight).to(conv_weight.dtype)


def _empty(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None,
    conv_weight: Tensor | None,
    num_landmarks: int,
    iterations: int,
    neighbours: int | None = None,
    salient_tokens: int = 1,
) -> Sequence[Tensor]:
    kept = _kept(query, num_landmarks, neighbours, salient_tokens, zeros=False)
    return empty_like_projections(query), *kept


def _kept(
    query_BHND: Tensor, num_landmarks: int, neighbours: int | None, salient_tokens: int, zeros: bool
) -> list[Tensor]:
    """Room for what `native.Call` keeps, see there: 0 in a short row.

    With neighbours there is none if every row is exact. Without, its shape does not depend on the length, so
    that an export serves every length; where every row is short nobody writes or reads it: not filled, it is
    an address and no memory.
    """
    b, h, n, d = query_BHND.shape
    m = num_landmarks
    dtype = torch.float64 if query_BHND.dtype == torch.float64 else torch.float32
    shapes = [(m, d), (m, d), (m, m), (m, d), (m,)]
    if neighbours is not None:
        b = b if n > max(m, 2 * neighbours) else 0
        shapes = [(m, d), (m, d), (m, m), (m,), (n,), (n,)]
    elif zeros:
        zeros = n > m
    make = query_BHND.new_zeros if zeros else query_BHND.new_empty
    kept = [make((b, h, *shape), dtype=dtype) for shape in shapes]
    if neighbours is not None:
        kept.append(make((b, h, salient_tokens), dtype=torch.int32))
    return kept


def _kernels_of(conv_weight_H1K1: Tensor | None) -> Tensor | None:
    """The heads' kernels of the convolution, (H, K), float32."""
    if conv_weight_H1K1 is None:
        return None
    return conv_weight_H1K1.reshape(len(conv_weight_H1K1), -1).float().contiguous()


def _otherwise(query: Tensor, *inputs: object) -> Callable[..., Tensor] | None:
    """What computes a call without the kernel; None where that is here."""
    num_landmarks, neighbours = inputs[4], inputs[6] if len(inputs) > 6 else None
    assert isinstance(num_landmarks, int)
    assert neighbours is None or isinstance(neighbours, int)
    return None if native.suits(query, num_landmarks, neighbours) else _composed


def _composed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None,
    conv_weight: Tensor | None,
    num_landmarks: int,
    iterations: int,
    neighbours: int | None = None,
    salient_tokens: int = 1,
) -> Tensor:
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    out_BHND = composed_nystrom_attention(
        *(x.to(dtype) for x in (query, key, value)),
        num_landmarks,
        key_padding_mask,
        iterations,
        conv_weight_H1K1=conv_weight,
        neighbours=neighbours,
        salient_tokens=salient_tokens,
    )
    return out_BHND.to(query.dtype)


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
