"""The residual connection of Nyström attention: a depthwise convolution over the values.

Shapes: B rows, H heads, N positions, D head width, K kernel width; C blocks of T positions, each with
its window of W = T + K − 1 positions, which are the block's own T and K − 1 of the next, once the positions
have moved by half a kernel.

It is written as products of a banded matrix with all windows of a head, because a depthwise convolution on a
CPU takes about as long as the attention itself:

    out[block] (T × D) = band (T × W) · window (W × D),    band[t, t + j] = weight[j]
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nystromformer.attention.recording import is_recorded

BLOCK = 32
"""T, at least K − 1. A block costs T + K − 1 products a position; wider ones make fewer, larger products."""


def residual_convolution(value_BHND: Tensor, weight_H1K1: Tensor) -> Tensor:
    """Convolve each head's values along the sequence with the head's own kernel, zeros outside.

        out[b, h, i, :] = Σ_j weight[h, j] · value[b, h, i + j − (K − 1) / 2, :]

    Args:
        value_BHND: (B, H, N, D), zero at padding.
        weight_H1K1: (H, 1, K, 1), K odd: the layout of transformers' `conv.weight`.

    Returns:
        (B, H, N, D) in the values' dtype.

    Raises:
        ValueError: the weight has another shape, or an even width.
    """
    b, h, n, d = value_BHND.shape
    check_weight(weight_H1K1, h)
    if is_recorded():  # for other lengths too, which have other numbers of blocks
        weight_H1K1 = weight_H1K1.to(value_BHND.dtype)
        return F.conv2d(value_BHND, weight_H1K1, padding=(weight_H1K1.shape[2] // 2, 0), groups=h)
    kernel_HK = weight_H1K1.view(h, -1).to(value_BHND.dtype)
    k = kernel_HK.shape[1]
    block = max(BLOCK, k - 1)
    c = -(-n // block)
    # Half a kernel of zeros before, and behind the last block one more.
    padded_HPBD = F.pad(value_BHND.permute(1, 2, 0, 3), (0, 0, 0, 0, k // 2, (c + 1) * block - n - k // 2))
    blocks_HTCBD = padded_HPBD.unflatten(1, (c + 1, block)).transpose(1, 2)
    own_HTL = blocks_HTCBD[:, :, :c].reshape(h, block, c * b * d)
    next_HTL = blocks_HTCBD[:, : k - 1, 1:].reshape(h, k - 1, c * b * d)
    own_HTT, next_HTT = _banded(kernel_HK, block).split([block, k - 1], dim=2)
    out_HTL = torch.baddbmm(torch.bmm(own_HTT, own_HTL), next_HTT, next_HTL)
    out_BHCTD = out_HTL.view(h, block, c, b, d).permute(3, 0, 2, 1, 4)
    return out_BHCTD.flatten(2, 3)[:, :, :n]


def check_weight(weight_H1K1: Tensor, num_heads: int) -> None:
    """Raise ValueError where the kernel is not (H, 1, K, 1) with K odd."""
    shape = tuple(weight_H1K1.shape)
    if len(shape) != 4 or shape[:2] != (num_heads, 1) or shape[3] != 1 or shape[2] % 2 == 0:
        raise ValueError(f"conv_weight must have shape ({num_heads}, 1, odd width, 1), got {shape}")


def _banded(kernel_HK: Tensor, block: int) -> Tensor:
    """(H, T, W): row t holds the kernel from column t on."""
    h, k = kernel_HK.shape
    width = block + k - 1
    # Rows of one more than the width, laid end to end and read at the width, move right by one each.
    rows_HTW = F.pad(kernel_HK[:, None], (0, block)).expand(h, block, width + 1)
    return rows_HTW.reshape(h, -1)[:, : block * width].view(h, block, width)
