"""Nyström attention with exact neighbours on a CPU: the kernel of `native` as one operator.

Where the kernel cannot compute it, `composed.py` does; see `neighbours.py` for the mechanism.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nystromformer.attention import native
from nystromformer.attention.cpu import empty_like_projections, kernels_of
from nystromformer.attention.recording import is_recorded


def neighbours_attention_on_cpu(
    query_BHND: Tensor,
    key_BHND: Tensor,
    value_BHND: Tensor,
    key_padding_mask_BN: Tensor | None,
    conv_weight_H1K1: Tensor | None,
    num_landmarks: int,
    iterations: int,
    neighbours: int,
    salient_tokens: int,
) -> Tensor:
    """`nystrom_attention` with neighbours, segment-means and the iterative inverse; 0 at padding.

    Computed in float32, whatever the inputs' dtype and autocast. `native.suits` says what it takes.
    """
    out_BHND, *_ = torch.ops.nystromformer.neighbours_attention(
        query_BHND,
        key_BHND,
        value_BHND,
        key_padding_mask_BN,
        conv_weight_H1K1,
        num_landmarks,
        iterations,
        neighbours,
        min(salient_tokens, query_BHND.shape[2]),
    )
    return out_BHND


@torch.compiler.assume_constant_result
def why_not_neighbours_on_cpu(
    dtype: torch.dtype, width: int, num_landmarks: int, neighbours: int
) -> str | None:
    """A clause on what keeps the kernel from it; None where it can."""
    query = torch.empty(1, 1, 1, width, dtype=dtype, device="meta")
    if native.suits(query, num_landmarks, neighbours):
        return None
    return (
        "its kernel takes float32 and bfloat16, with a head width, landmarks and neighbours that are "
        f"multiples of {native.MULTIPLE}, where g++ could compile it"
    )


def _kept(query_BHND: Tensor, num_landmarks: int, neighbours: int, salient_tokens: int) -> list[Tensor]:
    """Room for what `native.forward` keeps; none if every row is exact, which a record cannot know."""
    b, h, n, d = query_BHND.shape
    m, rows = num_landmarks, b if is_recorded() or n > max(num_landmarks, 2 * neighbours) else 0
    shapes = [(m, d), (m, d), (m, m), (m,), (n,), (n,)]
    kept = [query_BHND.new_zeros((rows, h, *shape), dtype=torch.float32) for shape in shapes]
    return [*kept, query_BHND.new_zeros((rows, h, salient_tokens), dtype=torch.int32)]


@torch.library.custom_op(
    "nystromformer::neighbours_attention",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor query, Tensor key, Tensor value, Tensor? key_padding_mask, Tensor? conv_weight, "
    "int num_landmarks, int iterations, int neighbours, int salient_tokens) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _neighbours_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None,
    conv_weight: Tensor | None,
    num_landmarks: int,
    iterations: int,
    neighbours: int,
    salient_tokens: int,
) -> tuple[Tensor, ...]:
    out_BHND = empty_like_projections(query, zeros=key_padding_mask is not None)
    kept = _kept(query, num_landmarks, neighbours, salient_tokens)
    weight_HK = kernels_of(conv_weight, query.dtype)
    inputs = (query, key, value, key_padding_mask, weight_HK, num_landmarks, iterations)
    native.forward(*inputs, out_BHND, kept, neighbours, salient_tokens)
    return out_BHND, *kept


@_neighbours_attention.register_fake
def _(query: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    kept = _kept(query, num_landmarks=inputs[4], neighbours=inputs[6], salient_tokens=inputs[7])
    return empty_like_projections(query, zeros=False), *kept


@torch.library.custom_op(
    "nystromformer::neighbours_attention_backward",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor? key_padding_mask, "
    "Tensor? conv_weight, Tensor[] kept, int num_landmarks, int iterations, int neighbours, "
    "int salient_tokens) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
)
def _neighbours_attention_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None,
    conv_weight: Tensor | None,
    kept: Sequence[Tensor],
    num_landmarks: int,
    iterations: int,
    neighbours: int,
    salient_tokens: int,
) -> tuple[Tensor, ...]:
    grads = [empty_like_projections(query, zeros=key_padding_mask is not None) for _ in range(3)]
    weight_HK = kernels_of(conv_weight, query.dtype)
    inputs = (grad_out, query, key, value, key_padding_mask, weight_HK, num_landmarks, iterations)
    grad_HK = native.backward(*inputs, kept, grads, neighbours, salient_tokens)
    if conv_weight is None or grad_HK is None:
        return *grads, query.new_empty(0)
    return *grads, grad_HK.view_as(conv_weight).to(conv_weight.dtype)


@_neighbours_attention_backward.register_fake
def _(grad_out: Tensor, query: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    conv_weight = inputs[3]
    grads = [empty_like_projections(query, zeros=False) for _ in range(3)]
    return *grads, query.new_empty(0) if conv_weight is None else torch.empty_like(conv_weight)


def _keep(ctx: Any, inputs: tuple, output: tuple) -> None:
    *tensors, ctx.num_landmarks, ctx.iterations, ctx.neighbours, ctx.salient_tokens = inputs
    ctx.save_for_backward(*tensors, *output[1:])


def _differentiate(ctx: Any, grad_out: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, key_padding_mask, conv_weight, *kept = ctx.saved_tensors
    *grads, grad_weight = torch.ops.nystromformer.neighbours_attention_backward(
        grad_out,
        query,
        key,
        value,
        key_padding_mask,
        conv_weight,
        kept,
        ctx.num_landmarks,
        ctx.iterations,
        ctx.neighbours,
        ctx.salient_tokens,
    )
    return *grads, None, grad_weight if ctx.needs_input_grad[4] else None, None, None, None, None


_neighbours_attention.register_autograd(_differentiate, setup_context=_keep)
