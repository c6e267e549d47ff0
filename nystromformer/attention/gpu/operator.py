"""The kernels of `launch.py`, and those of the means, the inverse and the convolution alone, as operators of
PyTorch.

Shapes: B rows, H heads, N positions, D head width, M landmarks, K kernel width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nystromformer.attention.convolution import residual_convolution
from nystromformer.attention.gpu import launch, plan, products
from nystromformer.attention.gpu.convolution import convolution_kernel
from nystromformer.attention.gpu.landmarks import means_backward_kernel
from nystromformer.attention.gpu.mix import inverse_backward_kernel, inverse_kernel
from nystromformer.attention.gpu.support import padded
from nystromformer.attention.gpu.tiles import Rows
from nystromformer.attention.operator import Operator, define, empty_like_projections
from nystromformer.attention.options import NystromOptions
from nystromformer.attention.precision import as_product
from nystromformer.attention.projections import without_padding, zero_at_padding


def nystrom_attention_on_gpu(
    query_BHND: Tensor,
    key_BHND: Tensor,
    value_BHND: Tensor,
    options: NystromOptions,
    key_padding_mask_BN: Tensor | None = None,
    conv_weight_H1K1: Tensor | None = None,
) -> Tensor:
    """`nystrom_attention` with landmarks by segment-means and the iterative inverse; 0 at padding.

    For calls of which `support.why_not_on_gpu` has nothing to say. Under autocast the inputs are
    converted, as by PyTorch's fused attention. A convolution wider than a tile is computed by itself.
    """
    query_BHND, key_BHND, value_BHND = map(as_product, (query_BHND, key_BHND, value_BHND))
    widest = plan.tile_of(query_BHND.dtype, options.num_landmarks, query_BHND.shape[3]) + 1
    kernel_H1K1, wide_H1K1 = conv_weight_H1K1, None
    if conv_weight_H1K1 is not None and conv_weight_H1K1.shape[2] > widest:
        kernel_H1K1, wide_H1K1 = None, conv_weight_H1K1
    tensors = (query_BHND, key_BHND, value_BHND, key_padding_mask_BN)
    out_BHND: Tensor = _nystrom_attention(
        *tensors, kernel_H1K1, options.num_landmarks, options.pinv_iterations
    )[0]
    if wide_H1K1 is None:
        return out_BHND
    *_, silent_BHND = without_padding(*tensors)
    out_BHND = out_BHND + residual_convolution(silent_BHND, wide_H1K1)
    return zero_at_padding(out_BHND, key_padding_mask_BN)


_nystrom_attention = define(launch.Attention)


@dataclass(eq=False)
class SegmentMeans(Operator):
    """Q̃ and K̃ by segment-means, (2, B, H, M, D), float32; 0 where absent."""

    query: Tensor
    key: Tensor
    key_padding_mask: Tensor | None
    num_landmarks: int

    name = "segment_means_gpu"
    gradients = ("query", "key")
    device_types = launch.DEVICES

    def empty(self) -> tuple[Tensor]:
        b, h, _, d = self.query.shape
        return (self.query.new_empty(2, b, h, self.num_landmarks, d, dtype=torch.float32),)

    def forward(self) -> tuple[Tensor]:
        (means,) = self.empty()
        rows = Rows.of(self.key_padding_mask, self.num_landmarks)
        (_, _, n, d), masked = self.query.shape, rows.segment_BN is not None
        how = plan.plan_of_means(n, self.num_landmarks, d, masked)
        launch.write_means(launch.strided(self.query), launch.strided(self.key), rows, means, n, how)
        return (means,)

    def backward(self, grad_means: Tensor, kept: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        (b, h, n, d), m = self.query.shape, self.num_landmarks
        rows = Rows.of(self.key_padding_mask, m)
        grad_query, grad_key = empty_like_projections(self.query), empty_like_projections(self.key)
        means_backward_kernel[(b * h, -(-n // plan.TOKENS_TOGETHER), 2)](
            grad_means.contiguous(), rows.segment_BN, rows.count_B, grad_query, grad_key, b, h, n,
            M=m, D=d, D_PAD=padded(d), MASKED=rows.segment_BN is not None, P=plan.TOKENS_TOGETHER,
            num_warps=4,
        )  # fmt: skip
        return grad_query, grad_key


segment_means_on_gpu = define(SegmentMeans)


@dataclass(eq=False)
class Inverse(Operator):
    """Z ≈ Ã⁺ of landmarks in float32."""

    query_means: Tensor
    key_means: Tensor
    iterations: int
    half: int
    """Whether the iteration's factors are rounded to half precision, as tokens of that type are."""

    name = "inverse_gpu"
    gradients = ("query_means", "key_means")
    device_types = launch.DEVICES

    def empty(self) -> tuple[Tensor]:
        b, h, m, _ = self.query_means.shape
        return (self.query_means.new_empty(b, h, m, m),)

    def forward(self) -> tuple[Tensor]:
        b, h, m, d = self.query_means.shape
        if not self._on_chip():
            return (products.invert(self.query_means, self.key_means, self.iterations),)
        (inverse,) = self.empty()
        inverse_kernel[(b * h,)](
            self.query_means.contiguous(), self.key_means.contiguous(), inverse, self.iterations, d**-0.5,
            **self._constants(),
        )  # fmt: skip
        return (inverse,)

    def backward(self, grad_inverse: Tensor, kept: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        b, h, _, d = self.query_means.shape
        if not self._on_chip():
            return products.invert_backward(grad_inverse, self.query_means, self.key_means, self.iterations)
        query_means, key_means = self.query_means.contiguous(), self.key_means.contiguous()
        grad_query, grad_key = torch.empty_like(query_means), torch.empty_like(key_means)
        programs, steps = plan.room_for_iterates(query_means, self.iterations, bool(self.half))
        inverse_backward_kernel[(programs,)](
            grad_inverse.contiguous(), query_means, key_means, steps, grad_query, grad_key,
            b * h, self.iterations, d**-0.5, **self._constants(),
        )  # fmt: skip
        return grad_query, grad_key

    def _on_chip(self) -> bool:
        _, hopper = plan.chip(self.query_means.device)
        return plan.inverts_on_chip(self.query_means.shape[2], hopper)

    def _constants(self) -> dict[str, Any]:
        m, d = self.query_means.shape[2:]
        return plan.inversion(bool(self.half)) | plan.constants_of_heads(m, d, warps=4)


inverse_on_gpu = define(Inverse)


def convolution_on_gpu(value_BHND: Tensor, weight_H1K1: Tensor) -> Tensor:
    """`residual_convolution` of values that are 0 at padding."""
    if weight_H1K1.shape[2] > plan.tile_of(value_BHND.dtype, 1, value_BHND.shape[3]) + 1:
        return residual_convolution(value_BHND, weight_H1K1)
    out_BHND: Tensor = _convolution(value_BHND, weight_H1K1)
    return out_BHND


@dataclass(eq=False)
class Convolution(Operator):
    value: Tensor
    weight: Tensor

    name = "convolution_gpu"
    gradients = ("value", "weight")
    device_types = launch.DEVICES

    def empty(self) -> tuple[Tensor]:
        return (empty_like_projections(self.value),)

    def forward(self) -> tuple[Tensor]:
        return (self._convolved(self.value, turned=False),)

    def backward(self, grad_out: Tensor, kept: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        grad_out = grad_out.to(self.value.dtype)
        rows = launch.strided(grad_out), launch.strided(self.value)
        grad_weight = launch.kernel_gradient(*rows, self.weight, None, self._sizes())
        return self._convolved(grad_out, turned=True), grad_weight

    def _sizes(self) -> plan.Sizes:
        return plan.Sizes.of(self.value, None, self.weight, num_landmarks=1)

    def _convolved(self, x: Tensor, turned: bool) -> Tensor:
        sizes = self._sizes()
        out = empty_like_projections(x)
        parts, tokens = sizes.fine_parts
        convolution_kernel[(sizes.b * sizes.h, parts)](
            *launch.strided(x), self.weight.contiguous(), out, sizes.h, sizes.n, tokens,
            TURNED=turned, **sizes.constants["convolution"],
        )  # fmt: skip
        return out


_convolution = define(Convolution)
