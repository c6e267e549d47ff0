"""The depthwise convolution of a tile as products with a banded matrix, which tensor cores compute.

Shapes: N positions, D head width, K kernel width; P positions of a tile, W of the window around them.

    out[p] = Σ_j weight[j] · value[p + j − (K − 1) / 2],    band[p, p + j] = weight[j]

W is a power of two of at least P + K − 1, so that a kernel is at most one wider than a tile.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nystromformer.attention.gpu.tiles import load_tile, real_tokens, store_tile


@triton.jit
def load_window(
    start_of_head, stride, segment, row, start, N,
    K: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, MASKED: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """(W, D_PAD), from half a kernel before the tile on; 0 outside the sequence and at padding."""
    index_W = start - K // 2 + tl.arange(0, W)
    inside_W = index_W >= 0
    # An address before the sequence is not read, but it should not be formed either.
    index_W = tl.maximum(index_W, 0)
    real_W = real_tokens(segment, row, index_W, N, MASKED) & inside_W
    return load_tile(start_of_head, stride, index_W, real_W, D, D_PAD)


@triton.jit
def load_band(weight_of_head, K: tl.constexpr, P: tl.constexpr, W: tl.constexpr, TURNED: tl.constexpr):
    """(P, W) float32: row p holds the kernel from column p on, turned round for the backward pass."""
    tap_PW = tl.arange(0, W)[None, :] - tl.arange(0, P)[:, None]
    valid_PW = (tap_PW >= 0) & (tap_PW < K)
    if TURNED:
        tap_PW = K - 1 - tap_PW
    return tl.load(weight_of_head + tap_PW, mask=valid_PW, other=0.0).to(tl.float32)


@triton.jit
def convolution_kernel(
    x, x_b, x_h, x_n, weight, out, H, N, tokens_of_part,
    K: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, P: tl.constexpr, W: tl.constexpr,
    TURNED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the convolution alone, (B, N, H, D) in memory, of values that are 0 at padding. TURNED: from its
    gradient that of the values. Grid: (B · H, S)."""
    row_head = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    row = row_head // H
    head = row_head % H
    x += row * x_b + head * x_h
    out += (row * N * H + head) * D
    band_PW = load_band(weight + head * K, K, P, W, TURNED).to(x.dtype.element_ty)
    last = tl.minimum((part + 1) * tokens_of_part, N)
    for start in range(part * tokens_of_part, last, P):
        index_P = start + tl.arange(0, P)
        x_WD = load_window(x, x_n, x, row, start, N, K, D, D_PAD, False, W)
        out_PD = tl.dot(band_PW, x_WD, input_precision=PRECISION)
        store_tile(out, H * D, index_P, index_P < last, out_PD, D, D_PAD)


@triton.jit
def kernel_gradient_kernel(
    grad_out, grad_out_b, grad_out_h, grad_out_n,
    value, value_b, value_h, value_n,
    segment, grad_weight,
    H, N, tokens_of_part,
    K: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, MASKED: tl.constexpr,
    P: tl.constexpr, W: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write each part's share of the kernel's gradient, (B, H, S, P, K): it is their sum over S and P.

    The product of a tile's values and the output gradients of its window has the kernel's entries on its
    diagonals. Apart from the gradient of the values, whose registers this product would take, and in smaller
    tiles, of which less is thrown away. Grid: (B · H, S).
    """
    row_head = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    row = row_head // H
    head = row_head % H
    value += row * value_b + head * value_h
    grad_out += row * grad_out_b + head * grad_out_h
    grad_PW = tl.zeros([P, W], dtype=tl.float32)
    last = tl.minimum((part + 1) * tokens_of_part, N)
    for start in range(part * tokens_of_part, last, P):
        index_P = start + tl.arange(0, P)
        real_P = real_tokens(segment, row, index_P, N, MASKED) & (index_P < last)
        value_PD = load_tile(value, value_n, index_P, real_P, D, D_PAD)
        grad_out_WD = load_window(grad_out, grad_out_n, segment, row, start, N, K, D, D_PAD, MASKED, W)
        grad_PW += tl.dot(value_PD, tl.trans(grad_out_WD), input_precision=PRECISION)
    start_of_part = grad_weight + (row_head * tl.num_programs(1) + part) * P * K
    place_P1 = tl.arange(0, P)[:, None]
    tap_PW = K - 1 - (tl.arange(0, W)[None, :] - place_P1)
    tl.store(start_of_part + place_P1 * K + tap_PW, grad_PW, mask=(tap_PW >= 0) & (tap_PW < K))
