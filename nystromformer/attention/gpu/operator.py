"""The kernels of `launch.py` as an operator of PyTorch.

Shapes: B rows, H heads, N positions, D head width, M landmarks, K kernel width.
"""

from __future__ import annotations

from torch import Tensor

from nystromformer.attention.convolution import residual_convolution
from nystromformer.attention.gpu import launch
from nystromformer.attention.operator import define
from nystromformer.attention.precision import as_product
from nystromformer.attention.projections import without_padding, zero_at_padding


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
    out_BHND, *_ = _nystrom_attention(
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
