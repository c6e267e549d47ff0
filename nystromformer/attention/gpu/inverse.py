"""Z ≈ Ã⁺ alone, for exact neighbours, and its gradient: the iteration of `mix.py`.

Shapes: B rows, H heads, D head width, M landmarks.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nystromformer.attention.gpu.mix import (
    HEADROOM,
    initial_inverse,
    inner_products,
    iterate_backward,
    landmark_attention,
    times,
)
from nystromformer.attention.gpu.tiles import load_tile, store_tile


@triton.jit
def inverse_kernel(
    query_means, key_means, inverse, iterations, scale,
    M: tl.constexpr, M_PAD: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
    TYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write Z, (B, H, M, M). Grid: (B · H,)."""
    row_head = tl.program_id(0).to(tl.int64)
    landmark = tl.arange(0, M_PAD)
    valid_M = landmark < M
    query_MD = load_tile(query_means + row_head * M * D, D, landmark, valid_M, D, D_PAD)
    key_MD = load_tile(key_means + row_head * M * D, D, landmark, valid_M, D, D_PAD)
    matrix_MM = landmark_attention(query_MD, key_MD, scale, M, M_PAD, PRECISION)
    inverse_MM = initial_inverse(matrix_MM)
    for _step in range(0, iterations):
        product_MM, outer_MM = inner_products(matrix_MM, inverse_MM, TYPE, PRECISION)
        inverse_MM = 3.25 * inverse_MM - 0.25 * times(inverse_MM, outer_MM, TYPE, PRECISION)
    store_tile(inverse + row_head * M * M, M, landmark, valid_M, inverse_MM, M, M_PAD)


@triton.jit
def inverse_backward_kernel(
    grad_inverse, query_means, key_means, steps, grad_query_means, grad_key_means, heads, iterations, scale,
    M: tl.constexpr, M_PAD: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
    TYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the gradients of Q̃ and K̃. Programs take heads in turn, as those of `mix_backward_kernel`."""
    landmark = tl.arange(0, M_PAD)
    valid_M = landmark < M
    steps += tl.program_id(0).to(tl.int64) * iterations * 3 * M_PAD * M_PAD
    for turn in range(tl.program_id(0), heads, tl.num_programs(0)):
        start = tl.cast(turn, tl.int64) * M * D
        grad_MM = load_tile(grad_inverse + tl.cast(turn, tl.int64) * M * M, M, landmark, valid_M, M, M_PAD)
        query_MD = load_tile(query_means + start, D, landmark, valid_M, D, D_PAD)
        key_MD = load_tile(key_means + start, D, landmark, valid_M, D, D_PAD)
        matrix_MM = landmark_attention(query_MD, key_MD, scale, M, M_PAD, PRECISION)
        # The iteration is linear in this gradient, whose size may be outside of TYPE's range.
        largest = tl.max(tl.max(tl.abs(grad_MM), axis=1), axis=0)
        size = tl.where(largest > 0.0, largest * HEADROOM, 1.0)
        grad_matrix_MM = iterate_backward(
            grad_MM / size, matrix_MM, steps, iterations, M_PAD, TYPE, PRECISION
        )
        tl.debug_barrier()  # the next head overwrites the iterates
        delta_M = tl.sum(grad_matrix_MM * matrix_MM, axis=1)
        grad_score_MM = matrix_MM * (grad_matrix_MM - delta_M[:, None]) * (scale * size)
        # Read again: kept meanwhile they would push the iterates out of the registers.
        key_MD = load_tile(key_means + start, D, landmark, valid_M, D, D_PAD)
        grad_query_MD = tl.dot(grad_score_MM, key_MD, input_precision=PRECISION)
        store_tile(grad_query_means + start, D, landmark, valid_M, grad_query_MD, D, D_PAD)
        query_MD = load_tile(query_means + start, D, landmark, valid_M, D, D_PAD)
        grad_key_MD = tl.dot(tl.trans(grad_score_MM), query_MD, input_precision=PRECISION)
        store_tile(grad_key_means + start, D, landmark, valid_M, grad_key_MD, D, D_PAD)
