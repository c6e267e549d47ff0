"""Z ≈ Ã⁺ and X = Z Y, where Y = B̃ V; and their backward pass. A program holds a head's matrices on chip.

Shapes: B rows, H heads, D head width, M landmarks; S parts that Y or a gradient came in.

Everything is float32. Rows and columns beyond M are 0, and stay so through the iteration. In a short
row, of at most M tokens, each landmark is a token: X = V, and no gradient goes through Z.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nystromformer.attention.gpu.tiles import load_tile, real_count, store_tile

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
def initial_inverse(matrix_MM):
    """Ãᵀ / (‖Ã‖₁ ‖Ã‖_∞)."""
    column_norm = tl.max(tl.sum(matrix_MM, axis=0), axis=0)
    row_norm = tl.max(tl.sum(matrix_MM, axis=1), axis=0)
    return tl.trans(matrix_MM) / (column_norm * row_norm)


@triton.jit
def times(left_MM, right_MM, TYPE: tl.constexpr, PRECISION: tl.constexpr):
    """A product of the iteration, its factors rounded to TYPE and its sums in float32."""
    return tl.dot(left_MM.to(TYPE), right_MM.to(TYPE), input_precision=PRECISION)


@triton.jit
def inner_products(matrix_MM, inverse_MM, TYPE: tl.constexpr, PRECISION: tl.constexpr):
    """P = Ã Z and P (15 I − P (7 I − P))."""
    product_MM = times(matrix_MM, inverse_MM, TYPE, PRECISION)
    inner_MM = 7.0 * product_MM - times(product_MM, product_MM, TYPE, PRECISION)
    outer_MM = 15.0 * product_MM - times(product_MM, inner_MM, TYPE, PRECISION)
    return product_MM, outer_MM


@triton.jit
def _join(
    gathered_parts, key_sums, top, total, gathered, key_means, normalizer, row_head, tokens,
    S, M: tl.constexpr, M_PAD: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
):  # fmt: skip
    """Write a head's Y = B̃ V and K̃, (B, H, M, D), and log₂ Σ exp₂(score), (B, H, M), from their parts."""
    landmark = tl.arange(0, M_PAD)
    valid_M = landmark < M
    top_M = tl.full([M_PAD], float("-inf"), dtype=tl.float32)
    for part in range(0, S):
        slot = row_head * S + part
        top_M = tl.maximum(top_M, tl.load(top + slot * M + landmark, mask=valid_M, other=float("-inf")))
    top_M = tl.where(top_M == float("-inf"), 0.0, top_M)  # no real token
    total_M = tl.zeros([M_PAD], dtype=tl.float32)
    sum_MD = tl.zeros([M_PAD, D_PAD], dtype=tl.float32)
    key_MD = tl.zeros([M_PAD, D_PAD], dtype=tl.float32)
    for part in range(0, S):
        slot = row_head * S + part
        own_M = tl.load(top + slot * M + landmark, mask=valid_M, other=float("-inf"))
        share_M = tl.exp2(own_M - top_M)
        total_M += share_M * tl.load(total + slot * M + landmark, mask=valid_M, other=0.0)
        sum_MD += share_M[:, None] * load_tile(gathered_parts + slot * M * D, D, landmark, valid_M, D, D_PAD)
        key_MD += load_tile(key_sums + slot * M * D, D, landmark, valid_M, D, D_PAD)
    total_M = tl.where(total_M == 0.0, 1.0, total_M)
    start = row_head * M * D
    store_tile(gathered + start, D, landmark, valid_M, sum_MD / total_M[:, None], D, D_PAD)
    size_M = tl.maximum(tokens // M + (landmark < tokens % M).to(tl.int32), 1).to(tl.float32)
    store_tile(key_means + start, D, landmark, valid_M, key_MD / size_M[:, None], D, D_PAD)
    tl.store(normalizer + row_head * M + landmark, top_M + tl.log2(total_M), mask=valid_M)


@triton.jit
def join_kernel(
    gathered_parts, key_sums, top, total, count, gathered, key_means, normalizer, H, N,
    S, M: tl.constexpr, M_PAD: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """`_join` by itself, where `mix_kernel` does not invert. Grid: (B · H,)."""
    row_head = tl.program_id(0).to(tl.int64)
    tokens = real_count(count, row_head // H, N, MASKED)
    _join(
        gathered_parts, key_sums, top, total, gathered, key_means, normalizer, row_head, tokens,
        S, M, M_PAD, D, D_PAD,
    )  # fmt: skip


@triton.jit
def mix_kernel(
    gathered_parts, key_sums, top, total, value, value_b, value_h, value_n, first, count, query_means,
    gathered, key_means, normalizer, inverse, mixed,
    H, N, S, iterations, scale,
    M: tl.constexpr, M_PAD: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
    MASKED: tl.constexpr, INVERTS: tl.constexpr,
    TYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write Y and K̃ from their parts, Z, (B, H, M, M), and X, (B, H, M, D). Grid: (B · H,).

    Without INVERTS all are there already, and only the X of short rows is written.
    """
    row_head = tl.program_id(0).to(tl.int64)
    row = row_head // H
    head = row_head % H
    start_of_means = row_head * M * D
    landmark = tl.arange(0, M_PAD)
    valid_M = landmark < M
    tokens = real_count(count, row, N, MASKED)
    if INVERTS:
        _join(
            gathered_parts, key_sums, top, total, gathered, key_means, normalizer, row_head, tokens,
            S, M, M_PAD, D, D_PAD,
        )  # fmt: skip
        tl.debug_barrier()  # another thread may read what this one wrote
        query_MD = load_tile(query_means + start_of_means, D, landmark, valid_M, D, D_PAD)
        key_MD = load_tile(key_means + start_of_means, D, landmark, valid_M, D, D_PAD)
        matrix_MM = landmark_attention(query_MD, key_MD, scale, M, M_PAD, PRECISION)
        inverse_MM = initial_inverse(matrix_MM)
        for _step in range(0, iterations):
            product_MM, outer_MM = inner_products(matrix_MM, inverse_MM, TYPE, PRECISION)
            inverse_MM = 3.25 * inverse_MM - 0.25 * times(inverse_MM, outer_MM, TYPE, PRECISION)
        gathered_MD = load_tile(gathered + start_of_means, D, landmark, valid_M, D, D_PAD)
        mixed_MD = tl.dot(inverse_MM, gathered_MD, input_precision=PRECISION)
        store_tile(inverse + row_head * M * M, M, landmark, valid_M, inverse_MM, M, M_PAD)
        store_tile(mixed + start_of_means, D, landmark, valid_M, mixed_MD, D, D_PAD)
    if MASKED:
        tl.debug_barrier()  # what is written now comes after what another thread wrote there
        short = tokens <= M
        own_M = (landmark < tokens) & short
        place_M = tl.load(first + row * M + landmark, mask=own_M, other=0)
        own_MD = load_tile(value + row * value_b + head * value_h, value_n, place_M, own_M, D, D_PAD)
        store_tile(mixed + start_of_means, D, landmark, valid_M & short, own_MD, D, D_PAD)


@triton.jit
def iterate_backward(
    grad_MM, matrix_MM, steps, iterations, M_PAD: tl.constexpr, TYPE: tl.constexpr, PRECISION: tl.constexpr
):
    """Gradient of Ã from that of Z, as `pseudoinverse.iterate_backward`.

    Z, P and the outer product of every step are computed again and laid down in `steps`,
    (iterations, 3, M_PAD, M_PAD) of TYPE: on chip they would push each other out of the registers.
    """
    index_M = tl.arange(0, M_PAD)
    size: tl.constexpr = M_PAD * M_PAD
    steps_MM = steps + index_M[:, None] * M_PAD + index_M[None, :]
    inverse_MM = initial_inverse(matrix_MM)
    for step in range(0, iterations):
        product_MM, outer_MM = inner_products(matrix_MM, inverse_MM, TYPE, PRECISION)
        tl.store(steps_MM + (3 * step) * size, inverse_MM.to(TYPE))
        tl.store(steps_MM + (3 * step + 1) * size, product_MM.to(TYPE))
        tl.store(steps_MM + (3 * step + 2) * size, outer_MM.to(TYPE))
        inverse_MM = 3.25 * inverse_MM - 0.25 * times(inverse_MM, outer_MM, TYPE, PRECISION)
    tl.debug_barrier()  # another thread may read what this one wrote
    grad_matrix_MM = tl.zeros([M_PAD, M_PAD], dtype=tl.float32)
    for back in range(0, iterations):
        step = iterations - 1 - back
        # Z' = ¼ Z (13 I − outer)
        before_MM = tl.load(steps_MM + (3 * step) * size)
        grad_outer_MM = -0.25 * times(tl.trans(before_MM), grad_MM, TYPE, PRECISION)
        turned_outer_MM = tl.trans(tl.load(steps_MM + (3 * step + 2) * size))
        grad_MM = 3.25 * grad_MM - 0.25 * times(grad_MM, turned_outer_MM, TYPE, PRECISION)
        # outer = 15 P − 7 P² + P³
        turned_MM = tl.trans(tl.load(steps_MM + (3 * step + 1) * size))
        left_MM = times(turned_MM, grad_outer_MM, TYPE, PRECISION)
        both_MM = left_MM + times(grad_outer_MM, turned_MM, TYPE, PRECISION)
        grad_product_MM = 15.0 * grad_outer_MM - 7.0 * both_MM
        grad_product_MM += times(both_MM, turned_MM, TYPE, PRECISION)
        grad_product_MM += times(turned_MM, left_MM, TYPE, PRECISION)
        # P = Ã Z
        grad_matrix_MM += times(grad_product_MM, tl.trans(before_MM), TYPE, PRECISION)
        grad_MM += times(tl.trans(matrix_MM), grad_product_MM, TYPE, PRECISION)
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
def _sum_of_parts(
    parts, row_head, S, M: tl.constexpr, M_PAD: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr
):
    """(M_PAD, D_PAD), of one head's (S, M, D)."""
    landmark = tl.arange(0, M_PAD)
    sum_MD = tl.zeros([M_PAD, D_PAD], dtype=tl.float32)
    for part in range(0, S):
        sum_MD += load_tile(parts + (row_head * S + part) * M * D, D, landmark, landmark < M, D, D_PAD)
    return sum_MD


@triton.jit
def mix_backward_kernel(
    grad_mixed_parts, grad_key_parts, query_means, key_means, inverse, gathered, count, steps,
    grad_mixed, grad_gathered, delta, grad_key_means, grad_query_means,
    B, H, N, S, iterations, scale,
    M: tl.constexpr, M_PAD: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
    MASKED: tl.constexpr, INVERTS: tl.constexpr,
    TYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the gradients of X, Y and K̃, delta = Σ dY ∘ Y, and Z's share of the gradient of Q̃.

    Programs take heads in turn, each with its own place for the iterates in `steps`. Grid: (any,).

    Without INVERTS only the sums over parts are written, the gradients of X and K̃.
    """
    landmark = tl.arange(0, M_PAD)
    valid_M = landmark < M
    steps += tl.program_id(0).to(tl.int64) * iterations * 3 * M_PAD * M_PAD
    for turn in range(tl.program_id(0), B * H, tl.num_programs(0)):
        row_head = tl.cast(turn, tl.int64)
        start_of_means = row_head * M * D
        grad_mixed_MD = _sum_of_parts(grad_mixed_parts, row_head, S, M, M_PAD, D, D_PAD)
        store_tile(grad_mixed + start_of_means, D, landmark, valid_M, grad_mixed_MD, D, D_PAD)
        if INVERTS:
            used = real_count(count, row_head // H, N, MASKED) > M
            # X = Z Y; a short row does not use them.
            through_MD = tl.where(used, grad_mixed_MD, 0.0)
            inverse_MM = load_tile(inverse + row_head * M * M, M, landmark, valid_M, M, M_PAD)
            gathered_MD = load_tile(gathered + start_of_means, D, landmark, valid_M, D, D_PAD)
            grad_gathered_MD = tl.dot(tl.trans(inverse_MM), through_MD, input_precision=PRECISION)
            delta_M = tl.sum(grad_gathered_MD * gathered_MD, axis=1)
            store_tile(grad_gathered + start_of_means, D, landmark, valid_M, grad_gathered_MD, D, D_PAD)
            tl.store(delta + row_head * M + landmark, delta_M, mask=valid_M)
            grad_inverse_MM = tl.dot(through_MD, tl.trans(gathered_MD), input_precision=PRECISION)
            # Z ≈ Ã⁺
            query_MD = load_tile(query_means + start_of_means, D, landmark, valid_M, D, D_PAD)
            key_MD = load_tile(key_means + start_of_means, D, landmark, valid_M, D, D_PAD)
            matrix_MM = landmark_attention(query_MD, key_MD, scale, M, M_PAD, PRECISION)
            # The iteration is linear in this gradient, whose size may be outside of TYPE's range.
            largest = tl.max(tl.max(tl.abs(grad_inverse_MM), axis=1), axis=0)
            size = tl.where(largest > 0.0, largest * HEADROOM, 1.0)
            grad_matrix_MM = iterate_backward(
                grad_inverse_MM / size, matrix_MM, steps, iterations, M_PAD, TYPE, PRECISION
            )
            tl.debug_barrier()  # the next head overwrites the iterates
            delta_M = tl.sum(grad_matrix_MM * matrix_MM, axis=1)
            grad_score_MM = matrix_MM * (grad_matrix_MM - delta_M[:, None]) * (scale * size)
            # Read again: kept meanwhile they would push the iterates out of the registers.
            key_MD = load_tile(key_means + start_of_means, D, landmark, valid_M, D, D_PAD)
            grad_query_MD = tl.dot(grad_score_MM, key_MD, input_precision=PRECISION)
            store_tile(grad_query_means + start_of_means, D, landmark, valid_M, grad_query_MD, D, D_PAD)
            query_MD = load_tile(query_means + start_of_means, D, landmark, valid_M, D, D_PAD)
            grad_key_MD = tl.dot(tl.trans(grad_score_MM), query_MD, input_precision=PRECISION)
            grad_key_MD += _sum_of_parts(grad_key_parts, row_head, S, M, M_PAD, D, D_PAD)
        else:
            grad_key_MD = _sum_of_parts(grad_key_parts, row_head, S, M, M_PAD, D, D_PAD)
        store_tile(grad_key_means + start_of_means, D, landmark, valid_M, grad_key_MD, D, D_PAD)


# --- Z alone, for exact neighbours ---------------------------------------------------------------------


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
