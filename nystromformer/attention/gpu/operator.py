"""The kernels as operators of PyTorch: opaque to torch.compile, differentiable once.

Shapes: B rows, H heads, N positions, D head width, M landmarks, K kernel width.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from nystromformer.attention.convolution import residual_convolution
from nystromformer.attention.gpu import launch
from nystromformer.attention.gpu.support import INTERPRETED
from nystromformer.attention.precision import as_product
from nystromformer.attention.projections import without_padding, zero_at_padding

DEVICES = ("cuda", "cpu") if INTERPRETED else ("cuda",)


def nystrom_attention_on_gpu(
    query_BHND: Tensor,
    key_BHND: Tensor,
    value_BHND: Tensor,
    key_padding_mask_BN: Tensor | None,
    conv_weight_H1K1: Tensor | None,
    num_landmarks: int,
    iterations: int,
) -> Tensor:
    """`nystrom_attention` with landmarks by segment-means and the iterative inverse; 0 at padding.

    For calls of which `support.why_not_on_gpu` has nothing to say. Under autocast the inputs are
    converted, as by PyTorch's fused attention. A convolution wider than a tile is computed by itself.
    """
    query_BHND, key_BHND, value_BHND = map(as_product, (query_BHND, key_BHND, value_BHND))
    widest = launch.tile_of(query_BHND.dtype, num_landmarks, query_BHND.shape[3]) + 1
    wide = conv_weight_H1K1 is not None and conv_weight_H1K1.shape[2] > widest
    out_BHND, *_ = torch.ops.nystromformer.nystrom_attention_gpu(
        query_BHND,
        key_BHND,
        value_BHND,
        key_padding_mask_BN,
        None if wide else conv_weight_H1K1,
        num_landmarks,
        iterations,
    )
    if wide and conv_weight_H1K1 is not None:
        *_, silent_BHND = without_padding(query_BHND, key_BHND, value_BHND, key_padding_mask_BN)
        out_BHND = out_BHND + residual_convolution(silent_BHND, conv_weight_H1K1)
        out_BHND = zero_at_padding(out_BHND, key_padding_mask_BN)
    return out_BHND


def _on(device: torch.device) -> AbstractContextManager:
    """Triton launches on the current device, which need not be that of the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@torch.library.custom_op(
    "nystromformer::nystrom_attention_gpu",
    mutates_args=(),
    device_types=DEVICES,
    schema="(Tensor query, Tensor key, Tensor value, Tensor? key_padding_mask, Tensor? conv_weight, "
    "int num_landmarks, int iterations) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _nystrom_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None,
    conv_weight: Tensor | None,
    num_landmarks: int,
    iterations: int,
) -> tuple[Tensor, ...]:
    with _on(query.device):
        weight = None if conv_weight is None else conv_weight.contiguous()
        return launch.forward(query, key, value, key_padding_mask, weight, num_landmarks, iterations)


@_nystrom_attention.register_fake
def _(query: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    return launch.empty_outputs(query, m=inputs[4])


@torch.library.custom_op(
    "nystromformer::nystrom_attention_gpu_backward",
    mutates_args=(),
    device_types=DEVICES,
    schema="(Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor? key_padding_mask, "
    "Tensor? conv_weight, Tensor landmarks, Tensor inverse, Tensor gathered, Tensor mixed, "
    "Tensor normalizer, int iterations) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _nystrom_attention_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None,
    conv_weight: Tensor | None,
    landmarks: Tensor,
    inverse: Tensor,
    gathered: Tensor,
    mixed: Tensor,
    normalizer: Tensor,
    iterations: int,
) -> tuple[Tensor, ...]:
    with _on(query.device):
        weight = None if conv_weight is None else conv_weight.contiguous()
        *grads, grad_weight = launch.backward(
            grad_out, query, key, value, key_padding_mask, weight, landmarks, inverse, gathered, mixed,
            normalizer, iterations,
        )  # fmt: skip
    return *grads, query.new_empty(0) if grad_weight is None else grad_weight


@_nystrom_attention_backward.register_fake
def _(grad_out: Tensor, query: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    conv_weight = inputs[3]
    grads = [launch.empty_like_projections(query) for _ in range(3)]
    return *grads, query.new_empty(0) if conv_weight is None else conv_weight.new_empty(conv_weight.shape)


def _keep(ctx: Any, inputs: tuple, output: tuple) -> None:
    query, key, value, key_padding_mask, conv_weight, _, ctx.iterations = inputs
    ctx.save_for_backward(query, key, value, key_padding_mask, conv_weight, *output[1:])


def _differentiate(ctx: Any, grad_out: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    *grads, grad_weight = torch.ops.nystromformer.nystrom_attention_gpu_backward(
        grad_out, *ctx.saved_tensors, ctx.iterations
    )
    return *grads, None, grad_weight if ctx.needs_input_grad[4] else None, None, None


_nystrom_attention.register_autograd(_differentiate, setup_context=_keep)
