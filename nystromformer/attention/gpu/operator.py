"""The kernels of `launch.py`, and those of the means, the inverse and the convolution alone, as operators of
PyTorch.

Shapes: B rows, H heads, N positions, D head width, M landmarks, K kernel width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nystromformer.attention.choices import Choices
from nystromformer.attention.convolution import residual_convolution
from nystromformer.attention.gpu import launch, products
from nystromformer.attention.gpu.convolution import convolution_kernel
from nystromformer.attention.gpu.inverse import inverse_backward_kernel, inverse_kernel
from nystromformer.attention.gpu.landmarks import means_backward_kernel
from nystromformer.attention.gpu.rows import rows_of
from nystromformer.attention.gpu.support import padded
from nystromformer.attention.operator import define, empty_like_projections
from nystromformer.attention.precision import as_product
from nystromformer.attention.projections import without_padding, zero_at_padding


def nystrom_attention_on_gpu(
    query_BHND: Tensor,
    key_BHND: Tensor,
    value_BHND: Tensor,
    choices: Choices,
    key_padding_mask_BN: Tensor | None = None,
    conv_weight_H1K1: Tensor | None = None,
) -> Tensor:
    """`nystrom_attention` with landmarks by segment-means and the iterative inverse; 0 at padding.

    For calls of which `support.why_not_on_gpu` has nothing to say. Under autocast the inputs are
    converted, as by PyTorch's fused attention. A convolution wider than a tile is computed by itself.
    """
    query_BHND, key_BHND, value_BHND = map(as_product, (query_BHND, key_BHND, value_BHND))
    widest = launch.tile_of(query_BHND.dtype, choices.num_landmarks, query_BHND.shape[3]) + 1
    wide = conv_weight_H1K1 is not None and conv_weight_H1K1.shape[2] > widest
    out_BHND, *_ = _nystrom_attention(
        query_BHND,
        key_BHND,
        value_BHND,
        key_padding_mask_BN,
        None if wide else conv_weight_H1K1,
        choices.num_landmarks,
        choices.pinv_iterations,
    )
    if wide and conv_weight_H1K1 is not None:
        *_, silent_BHND = without_padding(query_BHND, key_BHND, value_BHND, key_padding_mask_BN)
        out_BHND = out_BHND + residual_convolution(silent_BHND, conv_weight_H1K1)
        out_BHND = zero_at_padding(out_BHND, key_padding_mask_BN)
    return out_BHND


_nystrom_attention = define(
    "nystrom_attention_gpu",
    ("query", "key", "value", "key_padding_mask?", "conv_weight?"),
    ("num_landmarks", "iterations"),
    outputs=6,
    gradients=("query", "key", "value", "conv_weight"),
    device_types=launch.DEVICES,
    forward=launch.forward,
    backward=launch.backward,
    empty=lambda query, *inputs: launch.empty_outputs(query, m=inputs[4]),
)


def landmarks_on_gpu(
    query_BHND: Tensor, key_BHND: Tensor, key_padding_mask_BN: Tensor | None, num_landmarks: int
) -> tuple[Tensor, Tensor]:
    """Q̃ and K̃ by segment-means, (B, H, M, D), float32; 0 where absent."""
    means_2BHMD = _means(query_BHND, key_BHND, key_padding_mask_BN, num_landmarks)
    query_BHMD, key_BHMD = means_2BHMD.unbind()
    return query_BHMD, key_BHMD


def _empty_means(query: Tensor, key: Tensor, mask: Tensor | None, num_landmarks: int) -> tuple[Tensor]:
    b, h, _, d = query.shape
    return (query.new_empty(2, b, h, num_landmarks, d, dtype=torch.float32),)


def _rows(mask: Tensor | None, num_landmarks: int) -> launch.Rows:
    return launch.Rows() if mask is None else launch.Rows(*rows_of(mask, num_landmarks))


def _average(query: Tensor, key: Tensor, mask: Tensor | None, num_landmarks: int) -> tuple[Tensor]:
    (means,) = _empty_means(query, key, mask, num_landmarks)
    launch.write_means(launch.rowwise(query), launch.rowwise(key), _rows(mask, num_landmarks), means)
    return (means,)


def _average_backward(
    grad_means: Tensor,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    kept: Sequence[Tensor],
    num_landmarks: int,
) -> tuple[Tensor, Tensor]:
    b, h, n, d = query.shape
    rows = _rows(mask, num_landmarks)
    grad_query, grad_key = empty_like_projections(query), empty_like_projections(key)
    means_backward_kernel[(b * h, -(-n // launch.TOKENS_TOGETHER), 2)](
        grad_means.contiguous(), rows.segment_BN, rows.count_B, grad_query, grad_key, b, h, n,
        M=num_landmarks, D=d, D_PAD=padded(d), MASKED=mask is not None, P=launch.TOKENS_TOGETHER, num_warps=4,
    )  # fmt: skip
    return grad_query, grad_key


_means = define(
    "segment_means_gpu",
    ("query", "key", "key_padding_mask?"),
    ("num_landmarks",),
    outputs=1,
    gradients=("query", "key"),
    device_types=launch.DEVICES,
    forward=_average,
    backward=_average_backward,
    empty=_empty_means,
)


def inverse_on_gpu(query_BHMD: Tensor, key_BHMD: Tensor, iterations: int, tokens_BHND: Tensor) -> Tensor:
    """Z ≈ Ã⁺ of landmarks in float32.

    Args:
        tokens_BHND: the queries, whose dtype says how the iteration's factors are rounded.
    """
    inverse_BHMM: Tensor = _inverse(query_BHMD, key_BHMD, iterations, tokens_BHND.dtype != torch.float32)
    return inverse_BHMM


def _empty_inverse(query_means: Tensor, *_: Any) -> tuple[Tensor]:
    b, h, m = query_means.shape[:3]
    return (query_means.new_empty(b, h, m, m),)


def _invert(query_means: Tensor, key_means: Tensor, iterations: int, half: int) -> tuple[Tensor]:
    b, h, m, d = query_means.shape
    if not launch.inverts_on_chip(m, launch.chip(query_means.device)[1]):
        return (products.invert(query_means, key_means, iterations),)
    (inverse,) = _empty_inverse(query_means)
    inverse_kernel[(b * h,)](
        query_means.contiguous(), key_means.contiguous(), inverse, iterations, d**-0.5,
        **launch.inversion(bool(half)), **launch.constants_of_heads(m, d, warps=4),
    )  # fmt: skip
    return (inverse,)


def _invert_backward(
    grad_inverse: Tensor,
    query_means: Tensor,
    key_means: Tensor,
    kept: Sequence[Tensor],
    iterations: int,
    half: int,
) -> tuple[Tensor, Tensor]:
    b, h, m, d = query_means.shape
    if not launch.inverts_on_chip(m, launch.chip(query_means.device)[1]):
        return products.invert_backward(grad_inverse, query_means, key_means, iterations)
    query_means, key_means = query_means.contiguous(), key_means.contiguous()
    grad_query, grad_key = torch.empty_like(query_means), torch.empty_like(key_means)
    programs, steps = launch.room_for_iterates(query_means, iterations, bool(half))
    inverse_backward_kernel[(programs,)](
        grad_inverse.contiguous(), query_means, key_means, steps, grad_query, grad_key,
        b * h, iterations, d**-0.5,
        **launch.inversion(bool(half)), **launch.constants_of_heads(m, d, warps=4),
    )  # fmt: skip
    return grad_query, grad_key


_inverse = define(
    "inverse_gpu",
    ("query_means", "key_means"),
    ("iterations", "half"),
    outputs=1,
    gradients=("query_means", "key_means"),
    device_types=launch.DEVICES,
    forward=_invert,
    backward=_invert_backward,
    empty=_empty_inverse,
)


def convolution_on_gpu(value_BHND: Tensor, weight_H1K1: Tensor) -> Tensor:
    """`residual_convolution` of values that are 0 at padding."""
    if weight_H1K1.shape[2] > launch.tile_of(value_BHND.dtype, 1, value_BHND.shape[3]) + 1:
        return residual_convolution(value_BHND, weight_H1K1)
    out_BHND: Tensor = _convolution(value_BHND, weight_H1K1)
    return out_BHND


def _convolved(x: Tensor, weight: Tensor, turned: bool) -> Tensor:
    sizes = _sizes_of_convolution(x, weight)
    x, out = launch.rowwise(x), empty_like_projections(x)
    parts, tokens = sizes.parts(2 * sizes.programs)
    constants = {name: sizes.constants[name] for name in ("D", "D_PAD", "P", "PRECISION", "num_stages")}
    convolution_kernel[(sizes.b * sizes.h, parts)](
        *launch.strided(x), weight.contiguous(), out, sizes.h, sizes.n, tokens,
        K=weight.shape[2], W=sizes.window, TURNED=turned, num_warps=4, **constants,
    )  # fmt: skip
    return out


def _sizes_of_convolution(x: Tensor, weight: Tensor) -> launch.Sizes:
    return launch.Sizes.of(x, None, weight, num_landmarks=1)


def _convolution_backward(
    grad_out: Tensor, value: Tensor, weight: Tensor, kept: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    grad_out = grad_out.to(value.dtype)
    sizes = _sizes_of_convolution(value, weight)
    rows = launch.rowwise(grad_out), launch.rowwise(value)
    return _convolved(grad_out, weight, True), launch.kernel_gradient(*rows, weight, None, sizes)


_convolution = define(
    "convolution_gpu",
    ("value", "weight"),
    (),
    outputs=1,
    gradients=("value", "weight"),
    device_types=launch.DEVICES,
    forward=lambda value, weight: (_convolved(value, weight, False),),
    backward=_convolution_backward,
    empty=lambda value, weight: (empty_like_projections(value),),
)
