"""Z ≈ Ã⁺ and its gradient. A program holds a head's matrices on chip.

Shapes: B rows, H heads, D head width, M landmarks.

Everything is float32, the factors of the iteration's products but where `launch.Sizes.inversion` says so.
Rows and columns beyond M are 0, and stay so through the iteration.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nystromformer.attention.gpu.tiles import load_tile, store_tile

HEADROOM = tl.constexpr(64.0)
"""By how much a gradient's largest entry is brought below 1: six steps multiply it by at most 1,200."""


@triton.jit
def landmark_attention(
    query_MD, key_MD, scale, M: tl.constexpr, M_PAD: tl.constexpr, PRECISION: tl.constexpr
):
    """Ã = softmax(Q̃ K̃ᵀ/√D), (M_PAD, M_PAD)."""
    valid_M = tl.arange(0, M_PAD) < M
    score_MM = tl.dot(query_MD, tl.trans(key_MD), input_precision=PRECISION) * scale
    score_MM = tl.where(valid_M[None, :], score_MM, float("-inf"))
    weight_MM = tl.exp(score_MM - tl.max(score_MM, axis=1)[:, None])
    attention_MM = weight_MM / tl.sum(weight_MM, axis=1)[:, None]
    return tl.where(valid_M[:, None], attention_MM, 0.0)


@triton.jit
def _initial_inverse(matrix_MM):
    """Ãᵀ / (‖Ã‖₁ ‖Ã‖_∞)."""
    column_norm = tl.max(tl.sum(matrix_MM, axis=0), axis=0)
    row_norm = tl.max(tl.sum(matrix_MM, axis=1), axis=0)
    return tl.trans(matrix_MM) / (column_norm * row_norm)


@triton.jit
def _times(left_MM, right_MM, TYPE: tl.constexpr, PRECISION: tl.constexpr):
    """A product of the iteration, its factors rounded to TYPE and its sums in float32."""
    return tl.dot(left_MM.to(TYPE), right_MM.to(TYPE), input_precision=PRECISION)


@triton.jit
def _inner_products(matrix_MM, inverse_MM, TYPE: tl.constexpr, PRECISION: tl.constexpr):
    """P = Ã Z and P (15 I − P (7 I − P))."""
    product_MM = _times(matrix_MM, inverse_MM, TYPE, PRECISION)
    inner_MM = 7.0 * product_MM - _times(product_MM, product_MM, TYPE, PRECISION)
    outer_MM = 15.0 * product_MM - _times(product_MM, inner_MM, TYPE, PRECISION)
    return product_MM, outer_MM


@triton.jit
def iterate(matrix_MM, iterations, TYPE: tl.constexpr, PRECISION: tl.constexpr):
    """Z ≈ Ã⁺."""
    inverse_MM = _initial_inverse(matrix_MM)
    for _step in range(0, iterations):
        product_MM, outer_MM = _inner_products(matrix_MM, inverse_MM, TYPE, PRECISION)
        inverse_MM = 3.25 * inverse_MM - 0.25 * _times(inverse_MM, outer_MM, TYPE, PRECISION)
    return inverse_MM


@triton.jit
def _iterate_backward(
    grad_MM, matrix_MM, steps, iterations, M_PAD: tl.constexpr, TYPE: tl.constexpr, PRECISION: tl.constexpr
):
    """Gradient of Ã from that of Z, as `pseudoinverse.iterate_backward`.

    Z, P and the outer product of every step are computed again and laid down in `steps`,
    (iterations, 3, M_PAD, M_PAD) of TYPE: on chip they would push each other out of the registers.
    """
    index_M = tl.arange(0, M_PAD)
    size: tl.constexpr = M_PAD * M_PAD
    steps_MM = steps + index_M[:, None] * M_PAD + index_M[None, :]
    inverse_MM = _initial_inverse(matrix_MM)
    for step in range(0, iterations):
        product_MM, outer_MM = _inner_products(matrix_MM, inverse_MM, TYPE, PRECISION)
        tl.store(steps_MM + (3 * step) * size, inverse_MM.to(TYPE))
        tl.store(steps_MM + (3 * step + 1) * size, product_MM.to(TYPE))
        tl.store(steps_MM + (3 * step + 2) * size, outer_MM.to(TYPE))
        inverse_MM = 3.25 * inverse_MM - 0.25 * _times(inverse_MM, outer_MM, TYPE, PRECISION)
    tl.debug_barrier()  # another thread may read what this one wrote
    grad_matrix_MM = tl.zeros([M_PAD, M_PAD], dtype=tl.float32)
    for back in range(0, iterations):
        step = iterations - 1 - back
        # Z' = ¼ Z (13 I − outer)
        before_MM = tl.load(steps_MM + (3 * step) * size)
        grad_outer_MM = -0.25 * _times(tl.trans(before_MM), grad_MM, TYPE, PRECISION)
        turned_outer_MM = tl.trans(tl.load(steps_MM + (3 * step + 2) * size))
        grad_MM = 3.25 * grad_MM - 0.25 * _times(grad_MM, turned_outer_MM, TYPE, PRECISION)
        # outer = 15 P − 7 P² + P³
        turned_MM = tl.trans(tl.load(steps_MM + (3 * step + 1) * size))
        left_MM = _times(turned_MM, grad_outer_MM, TYPE, PRECISION)
        both_MM = left_MM + _times(grad_outer_MM, turned_MM, TYPE, PRECISION)
        grad_product_MM = 15.0 * grad_outer_MM - 7.0 * both_MM
        grad_product_MM += _times(both_MM, turned_MM, TYPE, PRECISION)
        grad_product_MM += _times(turned_MM, left_MM, TYPE, PRECISION)
        # P = Ã Z
        grad_matrix_MM += _times(grad_product_MM, tl.trans(before_MM), TYPE, PRECISION)
        grad_MM += _times(tl.trans(matrix_MM), grad_product_MM, TYPE, PRECISION)
    # Z₀ = Ãᵀ / (‖Ã‖₁ ‖Ã‖_∞). The row norm's share is the same along a row: the softmax takes it away.
    sums_M = tl.sum(matrix_MM, axis=0)
    column_norm = tl.max(sums_M, axis=0)
    scale = 1.0 / (column_norm * tl.max(tl.sum(matrix_MM, axis=1), axis=0))
    turned_MM = tl.trans(grad_MM)
    grad_scale = -tl.sum(tl.sum(turned_MM * matrix_MM, axis=1), axis=0) * scale
    hit_M = (sums_M == column_norm).to(tl.float32)  # equal ones share it
    at_column_M = hit_M / tl.sum(hit_M, axis=0) * (grad_scale / column_norm)
    return grad_matrix_MM + turned_MM * scale + at_column_M[None, :]


@triton.jit
def score_gradient(
    grad_inverse_MM, matrix_MM, steps, iterations, M_PAD: tl.constexpr, TYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of Ã's scores from that of Z."""
    # The iteration is linear in this gradient, whose size may be outside of TYPE's range.
    largest = tl.max(tl.max(tl.abs(grad_inverse_MM), axis=1), axis=0)
    size = tl.where(largest > 0.0, largest * HEADROOM, 1.0)
    grad_matrix_MM = _iterate_backward(
        grad_inverse_MM / size, matrix_MM, steps, iterations, M_PAD, TYPE, PRECISION
    )
    delta_M = tl.sum(grad_matrix_MM * matrix_MM, axis=1)
    return matrix_MM * (grad_matrix_MM - delta_M[:, None]) * size


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
    inverse_MM = iterate(matrix_MM, iterations, TYPE, PRECISION)
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
        grad_score_MM = scale * score_gradient(grad_MM, matrix_MM, steps, iterations, M_PAD, TYPE, PRECISION)
        tl.debug_barrier()  # the next head overwrites the iterates
        # Read again: kept meanwhile they would push the iterates out of the registers.
        key_MD = load_tile(key_means + start, D, landmark, valid_M, D, D_PAD)
        grad_query_MD = tl.dot(grad_score_MM, key_MD, input_precision=PRECISION)
        store_tile(grad_query_means + start, D, landmark, valid_M, grad_query_MD, D, D_PAD)
        query_MD = load_tile(query_means + start, D, landmark, valid_M, D, D_PAD)
        grad_key_MD = tl.dot(tl.trans(grad_score_MM), query_MD, input_precision=PRECISION)
        store_tile(grad_key_means + start, D, landmark, valid_M, grad_key_MD, D, D_PAD)
