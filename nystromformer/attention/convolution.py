"""The residual connection of Nyström attention: a depthwise convolution over the values.

Shapes: B rows, H heads, N positions, D head width, K kernel width; C blocks of T positions, each with
its window of W = T + K − 1 positions; G some heads of one row.

It is written as one product with a banded matrix for each block of positions, because a depthwise
convolution on a CPU takes about as long as the attention itself:

    out[block] (T × D) = band (T × W) · window (W × D),    band[t, t + j] = weight[j]
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 16
"""T. A block costs T + K − 1 products a position, and wider blocks make fewer, larger products."""


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
    kernel_HK = weight_H1K1.view(h, -1).to(value_BHND.dtype)
    block = 4 * BLOCK  # a device other than a CPU runs this, and likes its products large
    windows_BHCWD = _padded(value_BHND, kernel_HK.shape[1], block).unfold(
        2, block + kernel_HK.shape[1] - 1, block
    )
    out_BHCTD = banded(kernel_HK, block)[None, :, None] @ windows_BHCWD.mT
    return out_BHCTD.flatten(2, 3)[:, :, :n]


def check_weight(weight_H1K1: Tensor, num_heads: int) -> None:
    """Raise ValueError where the kernel is not (H, 1, K, 1) with K odd."""
    shape = tuple(weight_H1K1.shape)
    if len(shape) != 4 or shape[:2] != (num_heads, 1) or shape[3] != 1 or shape[2] % 2 == 0:
        raise ValueError(f"conv_weight must have shape ({num_heads}, 1, odd width, 1), got {shape}")


def banded(kernel_HK: Tensor, block: int = BLOCK) -> Tensor:
    """(H, T, W): row t holds the kernel from column t on."""
    h, k = kernel_HK.shape
    width = block + k - 1
    # Rows of one more than the width, laid end to end and read at the width, move right by one each.
    rows_HTW = F.pad(kernel_HK[:, None], (0, block)).expand(h, block, width + 1)
    return rows_HTW.reshape(h, -1)[:, : block * width].view(h, block, width)


def sum_of_diagonals(band_HTW: Tensor) -> Tensor:
    """(H, K): the gradient of `banded`, each kernel entry's sum over the rows it stands in."""
    h, t, width = band_HTW.shape
    skewed_HTW = F.pad(band_HTW.reshape(h, -1), (0, t)).view(h, t, width + 1)
    return skewed_HTW[:, :, : width - t + 1].sum(dim=1)


def convolve(value_GND: Tensor, band_GTW: Tensor) -> Tensor:
    """The convolution of some heads, without copying their windows, (G, N, D)."""
    g, n, d = value_GND.shape
    _, t, width = band_GTW.shape
    padded_GPD = _padded(value_GND, width - t + 1, t)
    c = -(-n // t)
    out_GCTD = value_GND.new_empty(g, c, t, d)
    for head in range(g):
        torch.bmm(
            band_GTW[head].expand(c, t, width), _windows(padded_GPD[head], t, width), out=out_GCTD[head]
        )
    return out_GCTD.view(g, c * t, d)[:, :n]


def convolve_backward(grad_GND: Tensor, value_GND: Tensor, band_GTW: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `convolve` with respect to the values, (G, N, D), and to the bands, (G, T, W)."""
    g, n, d = value_GND.shape
    _, t, width = band_GTW.shape
    # A token hands its gradient back to where its value came from: the kernel turned round.
    flipped_GTW = band_GTW.flip(1, 2)
    padded_GPD = _padded(value_GND, width - t + 1, t)
    c = -(-n // t)
    grad_GCTD = F.pad(grad_GND, (0, 0, 0, c * t - n)).view(g, c, t, d)
    grad_band_GTW = torch.empty_like(band_GTW)
    for head in range(g):
        products_CTW = torch.bmm(grad_GCTD[head], _windows(padded_GPD[head], t, width).mT)
        torch.sum(products_CTW, dim=0, out=grad_band_GTW[head])
    return convolve(grad_GND, flipped_GTW), grad_band_GTW


def _padded(x: Tensor, kernel: int, block: int) -> Tensor:
    """Zeros around the positions: half a kernel before, half after the last whole block; contiguous."""
    n, half = x.shape[-2], kernel // 2
    return F.pad(x, (0, 0, half, half + -n % block)).contiguous()  # pad by nothing keeps the strides


def _windows(padded_PD: Tensor, block: int, width: int) -> Tensor:
    """(C, W, D): each block's window, a view."""
    p, d = padded_PD.shape
    return padded_PD.as_strided(
        ((p - width) // block + 1, width, d), (block * d, d, 1), padded_PD.storage_offset()
    )
