"""The residual connection of Nyström attention: a depthwise convolution over the values.

Shapes: B rows, H heads, N positions, D head width, K kernel width; C blocks of T positions, each with
its window of W = T + K − 1 positions; G some heads of one row.

It is written as one product with a banded matrix for each block of positions, because a depthwise
convolution on a CPU takes about as long as the attention itself:

    out[block] (T × D) = band (T × W) · window (W × D),    band[t, t + j] = weight[j]
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from nystromformer.attention.recording import is_recorded

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
    if is_recorded():  # for other lengths too, which have other numbers of blocks
        weight_H1K1 = weight_H1K1.to(value_BHND.dtype)
        return F.conv2d(value_BHND, weight_H1K1, padding=(weight_H1K1.shape[2] // 2, 0), groups=h)
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


def add_convolution(out_GND: Tensor, value_GND: Tensor, band_GTW: Tensor) -> None:
    """Add the convolution of some heads to `out`, without copying their windows."""
    g, n, d = value_GND.shape
    _, t, _ = band_GTW.shape
    for first, windows_GCWD in _windows(value_GND, band_GTW):
        c, width = windows_GCWD.shape[1:3]
        start, stop = first * t, min(n, (first + c) * t)
        for head in range(g):
            sums_CTD = torch.bmm(band_GTW[head].expand(c, t, width), windows_GCWD[head])
            out_GND[head, start:stop] += sums_CTD.view(c * t, d)[: stop - start]


def add_convolution_backward(
    grad_value_GND: Tensor, grad_band_GTW: Tensor, grad_out_GND: Tensor, value_GND: Tensor, band_GTW: Tensor
) -> None:
    """Add the gradients of the convolution with respect to the values and to the bands."""
    # A token hands its gradient back to where its value came from: the kernel turned round.
    add_convolution(grad_value_GND, grad_out_GND, band_GTW.flip(1, 2))
    g, n, d = value_GND.shape
    _, t, _ = band_GTW.shape
    for first, windows_GCWD in _windows(value_GND, band_GTW):
        c = windows_GCWD.shape[1]
        start, stop = first * t, min(n, (first + c) * t)
        blocks_GND = grad_out_GND[:, start:stop]
        if stop - start < c * t:
            blocks_GND = F.pad(blocks_GND, (0, 0, 0, c * t - (stop - start)))
        for head in range(g):
            products_CTW = torch.bmm(blocks_GND[head].unflatten(0, (c, t)), windows_GCWD[head].mT)
            grad_band_GTW[head] += products_CTW.sum(dim=0)


def _windows(value_GND: Tensor, band_GTW: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(first block, (G, C, W, D)): a view of the blocks inside, padded copies of those at the ends."""
    n, (_, t, width) = value_GND.shape[1], band_GTW.shape
    half, blocks = (width - t) // 2, -(-n // t)
    inside = range(-(-half // t), (n - half) // t)
    if not inside:
        inside = range(blocks, blocks)
    for first, last in ((0, inside.start), (inside.start, inside.stop), (inside.stop, blocks)):
        low, high = first * t - half, last * t + half
        if first < last:
            part_GPD = value_GND[:, max(low, 0) : min(high, n)]
            if low < 0 or high > n:
                part_GPD = F.pad(part_GPD, (0, 0, max(-low, 0), max(high - n, 0)))
            yield first, part_GPD.unfold(1, width, t).mT


def _padded(x: Tensor, kernel: int, block: int) -> Tensor:
    """Zeros around the positions: half a kernel before, half after the last whole block."""
    n, half = x.shape[-2], kernel // 2
    return F.pad(x, (0, 0, half, half + -n % block))
