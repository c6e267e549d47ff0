"""The order of the kernels.

Shapes: B rows, H heads, N positions, D head width, M landmarks, K kernel width; S parts of the positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nystromformer.attention.gpu import plan, products
from nystromformer.attention.gpu.convolution import kernel_gradient_kernel
from nystromformer.attention.gpu.gather import gather_backward_kernel, gather_kernel
from nystromformer.attention.gpu.landmarks import means_kernel
from nystromformer.attention.gpu.mix import join_kernel, mix_backward_kernel, mix_kernel
from nystromformer.attention.gpu.spread import (
    spread_backward_means_kernel,
    spread_backward_query_kernel,
    spread_kernel,
)
from nystromformer.attention.gpu.support import INTERPRETED, MOST_ENTRIES
from nystromformer.attention.gpu.tiles import Rows
from nystromformer.attention.operator import NystromOperator, empty_like_projections

DEVICES = ("cuda", "cpu") if INTERPRETED else ("cuda",)
"""Where the operators run."""

Strided = tuple[Tensor, int, int, int]
"""A tensor whose heads' rows are contiguous, and its steps from row to row, head to head and position to
position: as every kernel takes it."""


@dataclass(eq=False)
class Attention(NystromOperator):
    """What the backward pass needs: Q̃ and K̃, Z, B̃ V, X, and B̃'s normalizer."""

    name = "nystrom_attention_gpu"
    device_types = DEVICES

    def empty(self) -> tuple[Tensor, ...]:
        (b, h, _, d), m = self.query.shape, self.num_landmarks
        shapes = ((2, b, h, m, d), (b, h, m, m), (b, h, m, d), (b, h, m, d), (b, h, m))
        kept = (self.query.new_empty(shape, dtype=torch.float32) for shape in shapes)
        return empty_like_projections(self.query), *kept

    def forward(self) -> tuple[Tensor, ...]:
        sizes, rows, weight = self._sizes(), self._rows(), self._weight()
        b, h, n, m, d = sizes.b, sizes.h, sizes.n, sizes.m, sizes.d
        constants, heads = sizes.constants, b * h
        query, key, value = strided(self.query), strided(self.key), strided(self.value)
        out, means, inverse, gathered, mixed, normalizer = self.empty()
        query_means, key_means = means[0], means[1]
        write_means(query, key, rows, means[:1], n, sizes.means)

        parts, tokens = sizes.parts
        sums = out.new_empty(2, b, h, parts, m, d, dtype=torch.float32)
        extremes = out.new_empty(2, b, h, parts, m, dtype=torch.float32)
        in_parts = sums[0], sums[1], extremes[0], extremes[1]
        gather_kernel[(heads, parts)](
            *key, *value, query_means, rows.segment_BN, rows.count_B, *in_parts,
            h, n, tokens, sizes.score_scale, **constants["gather"],
        )  # fmt: skip
        if not sizes.on_chip:
            join_kernel[(heads,)](
                *in_parts, rows.count_B, gathered, key_means, normalizer, h, n, parts, **constants["join"]
            )
            products.mix(means, gathered, inverse, mixed, self.iterations)
        if sizes.on_chip or sizes.masked:
            mix_kernel[(heads,)](
                *in_parts, *value, rows.first_BM, rows.count_B, query_means, gathered, key_means,
                normalizer, inverse, mixed, h, n, parts, self.iterations, sizes.scale, **constants["mix"],
            )  # fmt: skip

        parts, tokens = sizes.fine_parts
        spread_kernel[(heads, parts)](
            *query, *value, key_means, mixed, weight, rows.segment_BN, rows.count_B, out,
            h, n, tokens, sizes.score_scale, **constants["spread"],
        )  # fmt: skip
        return out, means, inverse, gathered, mixed, normalizer

    def backward(self, grad_out: Tensor, kept: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        means, inverse, gathered, mixed, normalizer = kept
        sizes, rows, weight = self._sizes(), self._rows(), self._weight()
        b, h, n, m, d = sizes.b, sizes.h, sizes.n, sizes.m, sizes.d
        constants, heads, query_means, key_means = sizes.constants, b * h, means[0], means[1]
        query, key, value = strided(self.query), strided(self.key), strided(self.value)
        grad = strided(grad_out.to(self.query.dtype))
        grad_query, grad_key, grad_value = (empty_like_projections(self.query) for _ in range(3))
        parts, tokens = sizes.parts
        # out = F̃ X
        grads_in_parts = means.new_empty(3, b, h, parts, m, d)
        grad_mixed_parts, grad_key_parts, grad_query_parts = grads_in_parts.unbind()
        spread_backward_means_kernel[(heads, parts)](
            *grad, *query, key_means, mixed, rows.segment_BN, rows.count_B, grad_mixed_parts, grad_key_parts,
            h, n, tokens, sizes.scale, sizes.score_scale, **constants["spread_backward_means"],
        )  # fmt: skip
        # X = Z Y and Z ≈ Ã⁺
        of_heads = means.new_empty(4, b, h, m, d)
        grad_mixed, grad_gathered, grad_key_means, inverses_share = of_heads.unbind()
        delta = torch.empty_like(normalizer)
        programs, steps = plan.room_for_iterates(
            query_means, self.iterations if sizes.on_chip else 0, sizes.half
        )
        mix_backward_kernel[(programs,)](
            grad_mixed_parts, grad_key_parts, query_means, key_means, inverse, gathered, rows.count_B, steps,
            grad_mixed, grad_gathered, delta, grad_key_means, inverses_share,
            b, h, n, parts, self.iterations, sizes.scale, **constants["mix_backward"],
        )  # fmt: skip
        if not sizes.on_chip:
            products.mix_backward(
                grad_mixed, means, inverse, gathered, rows.count_B, grad_gathered, delta, grad_key_means,
                inverses_share, self.iterations,
            )  # fmt: skip
        # Y = B̃ V
        gather_backward_kernel[(heads, parts)](
            *grad, *key, *value, query_means, normalizer, grad_gathered, delta,
            grad_key_means, grad_mixed, inverses_share, weight, rows.segment_BN, rows.count_B,
            grad_key, grad_value, grad_query_parts,
            h, n, tokens, sizes.scale, sizes.score_scale, **constants["gather_backward"],
        )  # fmt: skip
        # Q̃ is a mean of queries
        grad_query_means = grad_query_parts if parts == 1 else grad_query_parts.sum(dim=2)
        fine_parts, fine_tokens = sizes.fine_parts
        spread_backward_query_kernel[(heads, fine_parts)](
            *grad, *query, key_means, mixed, grad_query_means, rows.segment_BN, rows.count_B, grad_query,
            h, n, fine_tokens, sizes.scale, sizes.score_scale, **constants["spread_backward_query"],
        )  # fmt: skip
        grad_weight = None
        if weight is not None:
            grad_weight = kernel_gradient(grad, value, weight, rows.segment_BN, sizes)
        return grad_query, grad_key, grad_value, grad_weight

    def _sizes(self) -> plan.Sizes:
        return plan.Sizes.of(self.query, self.key_padding_mask, self.conv_weight, self.num_landmarks)

    def _rows(self) -> Rows:
        return Rows.of(self.key_padding_mask, self.num_landmarks)

    def _weight(self) -> Tensor | None:
        return None if self.conv_weight is None else self.conv_weight.contiguous()


def write_means(
    query: Strided, key: Strided, rows: Rows, means: Tensor, n: int, how: tuple[int, plan.Constants]
) -> None:
    """Q̃ and K̃, (2, B, H, M, D); or Q̃ alone, (1, B, H, M, D)."""
    which, b, h = means.shape[:3]
    along, constants = how
    means_kernel[(b * h, along, which)](
        *query, *key, means, rows.segment_BN, rows.first_BM, rows.count_B, b, h, n, **constants
    )


def kernel_gradient(
    grad: Strided, value: Strided, weight: Tensor, segment_BN: Tensor | None, sizes: plan.Sizes
) -> Tensor:
    """That of the convolution's kernel."""
    parts, tokens = sizes.fine_parts
    found = weight.new_empty(sizes.b, sizes.h, parts, sizes.narrow_tile, weight.shape[2], dtype=torch.float32)
    kernel_gradient_kernel[(sizes.b * sizes.h, parts)](
        *grad, *value, segment_BN, found, sizes.h, sizes.n, tokens, **sizes.constants["kernel_gradient"]
    )
    return found.sum(dim=(0, 2, 3)).view_as(weight).to(weight.dtype)


def strided(x_BHND: Tensor) -> Strided:
    """The tensor, or a copy where a head's rows are not contiguous, or its entries not within 32 bits of its
    first."""
    _, _, n, d = x_BHND.shape
    of_row, of_head, of_position, of_entry = x_BHND.stride()
    if of_entry != 1 or (n - 1) * of_position + d > MOST_ENTRIES:
        x_BHND = x_BHND.contiguous()
        of_row, of_head, of_position, _ = x_BHND.stride()
    return x_BHND, of_row, of_head, of_position
