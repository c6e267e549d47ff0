"""The kernels of `near.py` as one operator with its own backward pass.

Shapes: B rows, H heads, N positions, D head width, M landmarks; C blocks of W positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nystromformer.attention.gpu.launch import _precision, _rowwise, _strided, empty_like_projections
from nystromformer.attention.gpu.near import (
    near_backward_key_kernel,
    near_backward_query_kernel,
    near_kernel,
)
from nystromformer.attention.gpu.operator import DEVICES, _on
from nystromformer.attention.gpu.support import padded


def near_and_far_on_gpu(
    query_BHND: Tensor,
    key_BHND: Tensor,
    value_BHND: Tensor,
    count_B: Tensor,
    key_BHMD: Tensor,
    mixed_BHCMD: Tensor,
    mixed_sums_BHCM: Tensor,
    far_BCM: Tensor,
    log_scale_BH: Tensor,
    neighbours: int,
) -> Tensor:
    """The output of `neighbours.attention_with_neighbours` from what the blocks share; 0 at padding.

    Args:
        query_BHND, key_BHND, value_BHND: real tokens first.
        count_B: each row's real tokens, int32, at least 1.
        key_BHMD, mixed_BHCMD, mixed_sums_BHCM, far_BCM, log_scale_BH: float32; no gradient goes to the last
            two.
    """
    out_BHND, *_ = torch.ops.nystromformer.near_and_far_gpu(
        query_BHND,
        key_BHND,
        value_BHND,
        count_B,
        key_BHMD,
        mixed_BHCMD,
        mixed_sums_BHCM,
        far_BCM,
        log_scale_BH,
        neighbours,
    )
    return out_BHND


def _constants(query: Tensor, neighbours: int) -> dict[str, Any]:
    d = query.shape[3]
    _, precision, _ = _precision(query.dtype)
    return {
        "D": d, "D_PAD": padded(d), "W": neighbours, "PRECISION": precision, "num_warps": 4, "num_stages": 1,
    }  # fmt: skip


def _constants_of_landmarks(query: Tensor, means: Tensor) -> dict[str, Any]:
    m = means.shape[2]
    return {"M": m, "M_PAD": padded(m), "MIX_PRECISION": _precision(query.dtype)[2]}


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    count: Tensor,
    key_means: Tensor,
    mixed: Tensor,
    mixed_sums: Tensor,
    far_counts: Tensor,
    log_scale: Tensor,
    neighbours: int,
) -> tuple[Tensor, ...]:
    """The output and the logarithms of both sums, (B, H, N)."""
    b, h, n, d = query.shape
    c = mixed.shape[2]
    query, key, value = (_rowwise(x) for x in (query, key, value))
    shared = [x.contiguous() for x in (key_means, mixed, mixed_sums, far_counts, log_scale)]
    out, log_near, log_far = _outputs(query)
    with _on(query.device):
        near_kernel[(c, b * h)](
            *_strided(query), *_strided(key), *_strided(value), count, *shared, out, log_near, log_far,
            h, n, c, d**-0.5, **_constants_of_landmarks(query, key_means), **_constants(query, neighbours),
        )  # fmt: skip
    return out, log_near, log_far


def _outputs(query: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    sums = query.new_empty(query.shape[:3], dtype=torch.float32)
    return empty_like_projections(query), sums, torch.empty_like(sums)


_near_and_far = torch.library.custom_op(
    "nystromformer::near_and_far_gpu",
    forward,
    mutates_args=(),
    device_types=DEVICES,
    schema="(Tensor query, Tensor key, Tensor value, Tensor count, Tensor key_means, Tensor mixed, "
    "Tensor mixed_sums, Tensor far_counts, Tensor log_scale, int neighbours) -> (Tensor, Tensor, Tensor)",
)


@_near_and_far.register_fake
def _(query: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return _outputs(query)


def backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    count: Tensor,
    key_means: Tensor,
    mixed: Tensor,
    mixed_sums: Tensor,
    far_counts: Tensor,
    log_scale: Tensor,
    out: Tensor,
    log_near: Tensor,
    log_far: Tensor,
    neighbours: int,
) -> tuple[Tensor, ...]:
    """Gradients of queries, keys, values, K̃, P and P's sums."""
    b, h, n, d = query.shape
    c = mixed.shape[2]
    grad_out, query, key, value = (_rowwise(x) for x in (grad_out, query, key, value))
    shared = [x.contiguous() for x in (key_means, mixed, mixed_sums, far_counts, log_scale)]
    grad_query, grad_key, grad_value = (empty_like_projections(query) for _ in range(3))
    grad_mixed, grad_sums = torch.empty_like(shared[1]), torch.empty_like(shared[2])
    grad_means = torch.empty_like(shared[1])
    first_key, first_value = (query.new_empty((b, h, c, d), dtype=torch.float32) for _ in range(2))
    share, compared = torch.empty_like(log_near), torch.empty_like(log_near)
    tensors = (*_strided(query), *_strided(key), *_strided(value), count)
    with _on(query.device):
        near_backward_query_kernel[(c, b * h)](
            *_strided(grad_out), out, *tensors, *shared, log_near, log_far,
            grad_query, grad_means, grad_mixed, grad_sums, first_key, first_value, share, compared,
            h, n, c, d**-0.5, **_constants_of_landmarks(query, key_means), **_constants(query, neighbours),
        )  # fmt: skip
        near_backward_key_kernel[(c, b * h)](
            *_strided(grad_out), *tensors, log_near, share, compared, grad_key, grad_value,
            h, n, d**-0.5, **_constants(query, neighbours),
        )  # fmt: skip
    for grad, parts_BHCD in ((grad_key, first_key), (grad_value, first_value)):
        grad[:, :, 0] = (grad[:, :, 0].float() + parts_BHCD.sum(dim=2)).to(grad.dtype)
    return grad_query, grad_key, grad_value, grad_means.sum(dim=2), grad_mixed, grad_sums


_near_and_far_backward = torch.library.custom_op(
    "nystromformer::near_and_far_gpu_backward",
    backward,
    mutates_args=(),
    device_types=DEVICES,
    schema="(Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor count, Tensor key_means, "
    "Tensor mixed, Tensor mixed_sums, Tensor far_counts, Tensor log_scale, Tensor out, Tensor log_near, "
    "Tensor log_far, int neighbours) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)


@_near_and_far_backward.register_fake
def _(grad_out: Tensor, query: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    grads = (empty_like_projections(query) for _ in range(3))
    return *grads, *(x.new_empty(x.shape) for x in inputs[3:6])


def _keep(ctx: Any, inputs: tuple, output: tuple) -> None:
    *tensors, ctx.neighbours = inputs
    ctx.save_for_backward(*tensors, *output)


def _differentiate(ctx: Any, grad_out: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, key_means, mixed, sums = torch.ops.nystromformer.near_and_far_gpu_backward(
        grad_out, *ctx.saved_tensors, ctx.neighbours
    )
    return query, key, value, None, key_means, mixed, sums, None, None, None


_near_and_far.register_autograd(_differentiate, setup_context=_keep)
