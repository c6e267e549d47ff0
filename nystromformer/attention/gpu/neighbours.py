"""The launches of `far.py` and `near.py`: Nyström attention with exact neighbours as an operator of PyTorch.

Shapes: B rows, H heads, N positions, D head width, M landmarks; C blocks of W positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nystromformer.attention.gpu.far import (
    blocks_kernel,
    mixed_backward_kernel,
    mixed_kernel,
    whole_kernel,
)
from nystromformer.attention.gpu.launch import DEVICES, strided
from nystromformer.attention.gpu.near import (
    near_backward_key_kernel,
    near_backward_query_kernel,
    near_kernel,
)
from nystromformer.attention.gpu.plan import Sizes, constants_of_heads, precision_of
from nystromformer.attention.operator import Operator, define, empty_like_projections
from nystromformer.attention.precision import tf32_allowed

LOG2_E = math.log2(math.e)


class _Far(NamedTuple):
    """What `far.py` computes for all tokens of a block."""

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


@dataclass(eq=False)
class NearAndFar(Operator):
    """`neighbours.attention_with_neighbours`: the output, 0 at padding, and the logarithms of both sums,
    (B, H, N)."""

    query: Tensor
    key: Tensor
    value: Tensor
    """(B, H, N, D) each, real tokens first."""
    count: Tensor
    """Each row's real tokens, (B,), int32, at least 1."""
    query_means: Tensor
    key_means: Tensor
    """Q̃ and K̃, (B, H, M, D), float32, as all that follow."""
    inverse: Tensor
    """Z, (B, H, M, M)."""
    log_landmarks: Tensor
    """log Σ exp(Q̃ K̃ᵀ/√D), (B, H, M)."""
    far_counts: Tensor
    """Far tokens in each segment, (B, C, M)."""
    neighbours: int

    name = "near_and_far_gpu"
    outputs = 3
    gradients = ("query", "key", "value", "query_means", "key_means", "inverse", "log_landmarks")
    device_types = DEVICES
    keeps_output = True

    def empty(self) -> tuple[Tensor, Tensor, Tensor]:
        sums = self.query.new_empty(self.query.shape[:3], dtype=torch.float32)
        return empty_like_projections(self.query), sums, torch.empty_like(sums)

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        far = self._far()
        out, log_near, log_far = self.empty()
        b, h, n, d = self.query.shape
        c = self.far_counts.shape[1]
        near_kernel[(b * h * c,)](
            *self._tokens(), self.key_means, far.mixed, far.mixed_sums, self.far_counts, far.log_scale,
            out, log_near, log_far, h, n, c, d**-0.5,
            **(self._constants() | self._sizes().tuned("near")),
        )  # fmt: skip
        return out, log_near, log_far

    def backward(self, grad_out: Tensor, kept: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What the blocks share is computed again: kept, it would outweigh queries, keys and values."""
        out, log_near, log_far = kept
        grad, far = strided(grad_out), self._far()
        b, h, n, d = self.query.shape
        c = self.far_counts.shape[1]
        grad_query, grad_key, grad_value = (empty_like_projections(self.query) for _ in range(3))
        grad_mixed, grad_sums = torch.empty_like(far.mixed), torch.empty_like(far.mixed_sums)
        grad_means = torch.empty_like(far.mixed)
        first_key, first_value = (self.query.new_empty((b, h, c, d), dtype=torch.float32) for _ in range(2))
        share, compared = torch.empty_like(log_near), torch.empty_like(log_near)
        product, *_ = precision_of(self.query.dtype, tf32_allowed())
        constants = self._constants() | {"MIX": product}
        near_backward_query_kernel[(b * h * c,)](
            *grad, out, *self._tokens(), self.key_means, far.mixed, far.mixed_sums,
            self.far_counts, far.log_scale, log_near, log_far,
            grad_query, grad_means, grad_mixed, grad_sums, first_key, first_value, share, compared,
            h, n, c, d**-0.5, **constants,
        )  # fmt: skip
        grad_key_means = grad_means.sum(dim=2)
        *summed, grad_inverse, grad_ratio = self._far_backward(far, grad_mixed, grad_sums)
        near_backward_key_kernel[(b * h * c,)](
            *grad, *self._tokens(), self.query_means, far.normalizer, grad_mixed, grad_sums,
            *summed, log_near, share, compared, grad_key, grad_value, grad_means,
            h, n, c, d**-0.5, d**-0.5 * LOG2_E, **constants,
        )  # fmt: skip
        for found, parts_BHCD in ((grad_key, first_key), (grad_value, first_value)):
            found[:, :, 0] = (found[:, :, 0].float() + parts_BHCD.sum(dim=2)).to(found.dtype)
        return (
            grad_query, grad_key, grad_value, grad_means.sum(dim=2), grad_key_means, grad_inverse,
            -far.ratio * grad_ratio,
        )  # fmt: skip

    def _far(self) -> _Far:
        """As the kernels read them, the tensors; and what the blocks share of them."""
        self.query, self.key, self.value = (strided(x)[0] for x in (self.query, self.key, self.value))
        self.query_means, self.key_means, self.inverse, self.log_landmarks, self.far_counts = (
            x.contiguous()
            for x in (
                self.query_means, self.key_means, self.inverse, self.log_landmarks, self.far_counts,
            )
        )  # fmt: skip
        (b, h, _, d), (c, m) = self.query.shape, self.far_counts.shape[1:]
        empty = self.query_means.new_empty
        parts, mixed = empty(2, b, h, c, m, d)
        top, total, sums, mixed_sums = empty(4, b, h, c, m)
        whole = torch.empty_like(self.query_means)
        whole_sums, normalizer, ratio = empty(3, b, h, m)
        log_scale = empty(b, h)
        sizes = constants_of_heads(m, d, warps=4)
        _, precision, mix_precision = precision_of(self.query.dtype, tf32_allowed())
        blocks_kernel[(b * h * c,)](
            *strided(self.key), *strided(self.value), self.count, self.query_means, parts, top, total, sums,
            h, c, d**-0.5 * LOG2_E, **sizes, W=self.neighbours, PRECISION=precision,
        )  # fmt: skip
        whole_kernel[(b * h,)](
            parts, top, total, sums, self.log_landmarks, self.count, whole, whole_sums, normalizer, ratio,
            log_scale, h, c, **sizes,
        )  # fmt: skip
        mixed_kernel[(b * h * c,)](
            parts, top, sums, whole, whole_sums, normalizer, ratio, self.inverse, self.far_counts, mixed,
            mixed_sums, h, c, **sizes, MIX_PRECISION=mix_precision,
        )  # fmt: skip
        return _Far(parts, top, sums, whole, whole_sums, normalizer, ratio, log_scale, mixed, mixed_sums)

    def _far_backward(self, far: _Far, grad_mixed: Tensor, grad_sums: Tensor) -> tuple[Tensor, ...]:
        """Σ U and its sums, and the gradients of Z and e; U comes in the place of P's gradient."""
        b, h, c, m, d = grad_mixed.shape
        programs = self._sizes().programs
        blocks_of_part = -(-c // min(c, -(-programs // (b * h))))
        parts = -(-c // blocks_of_part)
        *_, mix_precision = precision_of(self.query.dtype, tf32_allowed())
        found = [grad_mixed.new_empty(b, h, parts, *shape) for shape in ((m, d), (m,), (m, m), (m,))]
        mixed_backward_kernel[(b * h, parts)](
            grad_mixed, grad_sums, *far[:7], self.inverse, self.far_counts, *found, h, c, blocks_of_part,
            **constants_of_heads(m, d, warps=8), MIX_PRECISION=mix_precision,
        )  # fmt: skip
        return tuple(x.sum(dim=2) for x in found)

    def _sizes(self) -> Sizes:
        return Sizes.of(self.query, None, None, self.key_means.shape[2])

    def _tokens(self) -> tuple[Tensor | int, ...]:
        return (*strided(self.query), *strided(self.key), *strided(self.value), self.count)

    def _constants(self) -> dict[str, Any]:
        """Of the kernels that compute token by token."""
        _, precision, mix_precision = precision_of(self.query.dtype, tf32_allowed())
        return {
            **constants_of_heads(self.key_means.shape[2], self.query.shape[3], warps=4),
            "W": self.neighbours, "PRECISION": precision, "MIX_PRECISION": mix_precision,
        }  # fmt: skip


near_and_far_on_gpu = define(NearAndFar)
