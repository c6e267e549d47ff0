"""The launches of `far.py` and `near.py`: Nyström attention with exact neighbours as an operator of PyTorch.

Shapes: B rows, H heads, N positions, D head width, M landmarks; C blocks of W positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nystromformer.attention.gpu.far import (
    blocks_kernel,
    mixed_backward_kernel,
    mixed_kernel,
    whole_kernel,
)
from nystromformer.attention.gpu.launch import (
    DEVICES,
    Sizes,
    constants_of_heads,
    precision_of,
    rowwise,
    strided,
)
from nystromformer.attention.gpu.near import (
    near_backward_key_kernel,
    near_backward_query_kernel,
    near_kernel,
)
from nystromformer.attention.operator import define, empty_like_projections

LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class Far:
    """What `far.py` computes for all tokens of a block, and what it was computed of."""

    parts: Tensor
    top: Tensor
    sums: Tensor
    whole: Tensor
    whole_sums: Tensor
    normalizer: Tensor
    ratio: Tensor
    log_scale: Tensor
    mixed: Tensor
    mixed_sums: Tensor

    @classmethod
    def of(
        cls,
        key: Tensor,
        value: Tensor,
        count: Tensor,
        query_means: Tensor,
        inverse: Tensor,
        log_landmarks: Tensor,
        far_counts: Tensor,
        neighbours: int,
    ) -> Far:
        b, h, _, _ = key.shape
        c, m = far_counts.shape[1:]
        d = query_means.shape[3]
        parts, mixed = query_means.new_empty(2, b, h, c, m, d)
        top, total, sums, mixed_sums = query_means.new_empty(4, b, h, c, m)
        whole = torch.empty_like(query_means)
        whole_sums, normalizer, ratio = query_means.new_empty(3, b, h, m)
        log_scale = query_means.new_empty(b, h)
        sizes = constants_of_heads(m, d, warps=4)
        blocks_kernel[(b * h * c,)](
            *strided(key), *strided(value), count, query_means, parts, top, total, sums,
            h, c, d**-0.5 * LOG2_E, **sizes, **_constants(key, neighbours),
        )  # fmt: skip
        whole_kernel[(b * h,)](
            parts, top, total, sums, log_landmarks, count, whole, whole_sums, normalizer, ratio,
            log_scale, h, c, **sizes,
        )  # fmt: skip
        mixed_kernel[(b * h * c,)](
            parts, top, sums, whole, whole_sums, normalizer, ratio, inverse, far_counts, mixed, mixed_sums,
            h, c, **sizes, **_mix_precision(key),
        )  # fmt: skip
        return cls(parts, top, sums, whole, whole_sums, normalizer, ratio, log_scale, mixed, mixed_sums)

    def backward(
        self,
        grad_mixed: Tensor,
        grad_sums: Tensor,
        inverse: Tensor,
        far_counts: Tensor,
        mix_precision: dict[str, str],
        programs: int,
    ) -> tuple[Tensor, ...]:
        """Σ U and its sums, and the gradients of Z and e; U comes in the place of P's gradient."""
        b, h, c, m, d = grad_mixed.shape
        blocks_of_part = -(-c // min(c, -(-programs // (b * h))))
        parts = -(-c // blocks_of_part)
        found = [grad_mixed.new_empty(b, h, parts, *shape) for shape in ((m, d), (m,), (m, m), (m,))]
        mixed_backward_kernel[(b * h, parts)](
            grad_mixed, grad_sums, self.parts, self.top, self.sums, self.whole, self.whole_sums,
            self.normalizer, self.ratio, inverse, far_counts, *found, h, c, blocks_of_part,
            **constants_of_heads(m, d, warps=8), **mix_precision,
        )  # fmt: skip
        return tuple(x.sum(dim=2) for x in found)


def _constants(query: Tensor, neighbours: int) -> dict[str, Any]:
    """Of the kernels over tokens."""
    return {"W": neighbours, "PRECISION": precision_of(query.dtype)[1]}


def _mix_precision(query: Tensor) -> dict[str, str]:
    return {"MIX_PRECISION": precision_of(query.dtype)[2]}


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    count: Tensor,
    query_means: Tensor,
    key_means: Tensor,
    inverse: Tensor,
    log_landmarks: Tensor,
    far_counts: Tensor,
    neighbours: int,
) -> tuple[Tensor, ...]:
    """The output of `neighbours.attention_with_neighbours`, 0 at padding, and the logarithms of both sums,
    (B, H, N).

    Args:
        query, key, value: (B, H, N, D), real tokens first.
        count: each row's real tokens, (B,), int32, at least 1.
        query_means, key_means: Q̃ and K̃, (B, H, M, D), float32, as all that follow.
        inverse: Z, (B, H, M, M).
        log_landmarks: log Σ exp(Q̃ K̃ᵀ/√D), (B, H, M).
        far_counts: far tokens in each segment, (B, C, M).
    """
    b, h, n, d = query.shape
    c = far_counts.shape[1]
    query, key, value = (rowwise(x) for x in (query, key, value))
    query_means, key_means, inverse, log_landmarks, far_counts = (
        x.contiguous() for x in (query_means, key_means, inverse, log_landmarks, far_counts)
    )
    far = Far.of(key, value, count, query_means, inverse, log_landmarks, far_counts, neighbours)
    out, log_near, log_far = _outputs(query)
    near_kernel[(b * h * c,)](
        *strided(query), *strided(key), *strided(value), count,
        key_means, far.mixed, far.mixed_sums, far_counts, far.log_scale, out, log_near, log_far,
        h, n, c, d**-0.5,
        **constants_of_heads(key_means.shape[2], d, warps=4), **_constants(query, neighbours),
        **_mix_precision(query),
    )  # fmt: skip
    return out, log_near, log_far


def _outputs(query: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    sums = query.new_empty(query.shape[:3], dtype=torch.float32)
    return empty_like_projections(query), sums, torch.empty_like(sums)


def backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    count: Tensor,
    query_means: Tensor,
    key_means: Tensor,
    inverse: Tensor,
    log_landmarks: Tensor,
    far_counts: Tensor,
    kept: Sequence[Tensor],
    neighbours: int,
) -> tuple[Tensor, ...]:
    """Gradients of queries, keys, values, Q̃, K̃, Z and `log_landmarks`; `kept` is what `forward` gave. What
    the blocks share is computed again: kept, it would outweigh queries, keys and values."""
    out, log_near, log_far = kept
    b, h, n, d = query.shape
    c = far_counts.shape[1]
    grad_out, query, key, value = (rowwise(x) for x in (grad_out, query, key, value))
    query_means, key_means, inverse, log_landmarks, far_counts = (
        x.contiguous() for x in (query_means, key_means, inverse, log_landmarks, far_counts)
    )
    far = Far.of(key, value, count, query_means, inverse, log_landmarks, far_counts, neighbours)
    grad_query, grad_key, grad_value = (empty_like_projections(query) for _ in range(3))
    grad_mixed, grad_sums = torch.empty_like(far.mixed), torch.empty_like(far.mixed_sums)
    grad_means = torch.empty_like(far.mixed)
    first_key, first_value = (query.new_empty((b, h, c, d), dtype=torch.float32) for _ in range(2))
    share, compared = torch.empty_like(log_near), torch.empty_like(log_near)
    tensors = (*strided(query), *strided(key), *strided(value), count)
    constants = {
        **constants_of_heads(key_means.shape[2], d, warps=4), **_constants(query, neighbours),
        **_mix_precision(query),
    }  # fmt: skip
    near_backward_query_kernel[(b * h * c,)](
        *strided(grad_out), out, *tensors, key_means, far.mixed, far.mixed_sums, far_counts, far.log_scale,
        log_near, log_far,
        grad_query, grad_means, grad_mixed, grad_sums, first_key, first_value, share, compared,
        h, n, c, d**-0.5, **constants,
    )  # fmt: skip
    grad_key_means = grad_means.sum(dim=2)
    programs = Sizes.of(query, None, None, key_means.shape[2]).programs
    *summed, grad_inverse, grad_ratio = far.backward(
        grad_mixed, grad_sums, inverse, far_counts, _mix_precision(query), programs
    )
    near_backward_key_kernel[(b * h * c,)](
        *strided(grad_out), *tensors, query_means, far.normalizer, grad_mixed, grad_sums, *summed,
        log_near, share, compared, grad_key, grad_value, grad_means,
        h, n, c, d**-0.5, d**-0.5 * LOG2_E, **constants,
    )  # fmt: skip
    for grad, parts_BHCD in ((grad_key, first_key), (grad_value, first_value)):
        grad[:, :, 0] = (grad[:, :, 0].float() + parts_BHCD.sum(dim=2)).to(grad.dtype)
    return (
        grad_query, grad_key, grad_value, grad_means.sum(dim=2), grad_key_means, grad_inverse,
        -far.ratio * grad_ratio,
    )  # fmt: skip


near_and_far_on_gpu = define(
    "near_and_far_gpu",
    (
        "query", "key", "value", "count",
        "query_means", "key_means", "inverse", "log_landmarks", "far_counts",
    ),
    ("neighbours",),
    outputs=3,
    gradients=("query", "key", "value", "query_means", "key_means", "inverse", "log_landmarks"),
    device_types=DEVICES,
    forward=forward,
    backward=backward,
    empty=lambda query, *_: _outputs(query),
    keeps_output=True,
)  # fmt: skip
