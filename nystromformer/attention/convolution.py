"""The residual connection of Nyström attention: a depthwise convolution over the values.

Shapes: B rows, H heads, N positions, D head width, K kernel width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 64
"""Positions that one banded matrix covers."""


def residual_convolution(value_BHND: Tensor, weight_H1K1: Tensor) -> Tensor:
    """Convolve each head's values along the sequence with the head's own kernel, zeros outside.

        out[b, h, i, :] = Σ_j weight[h, j] · value[b, h, i + j − (K − 1) / 2, :]

    It is written as one product with a banded matrix for each block of positions, because a
    depthwise convolution on a CPU takes about as long as the attention itself.

    Args:
        value_BHND: (B, H, N, D), zero at padding.
        weight_H1K1: (H, 1, K, 1), K odd: the layout of transformers' `conv.weight`.

    Returns:
        (B, H, N, D) in the values' dtype.
    """
    h, _, k, _ = weight_H1K1.shape
    if k % 2 == 0:
        raise ValueError(f"a kernel of {k} cannot be centred on a token: use an odd width")
    n = value_BHND.shape[2]
    blocks = -(-n // BLOCK)
    half = k // 2
    padded_BHPD = F.pad(value_BHND, (0, 0, half, half + blocks * BLOCK - n))
    windows_BHCWD = padded_BHPD.unfold(2, BLOCK + k - 1, BLOCK).mT
    band_HTW = _banded(weight_H1K1.view(h, k).to(value_BHND.dtype))
    out_BHCTD = band_HTW[None, :, None] @ windows_BHCWD
    return out_BHCTD.flatten(2, 3)[:, :, :n]


def _banded(kernel_HK: Tensor) -> Tensor:
    """(H, BLOCK, BLOCK + K − 1): row t holds the kernel from column t on."""
    h, k = kernel_HK.shape
    width = BLOCK + k - 1
    # Rows of one more than the width, laid end to end and read at the width, move right by one each.
    rows_HTW = F.pad(kernel_HK[:, None], (0, BLOCK)).expand(h, BLOCK, width + 1)
    return rows_HTW.reshape(h, -1)[:, : BLOCK * width].view(h, BLOCK, width)
