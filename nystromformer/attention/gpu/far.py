"""What the tokens of a block share in Nyström attention with exact neighbours: P of what is far from it.

Shapes: B rows, H heads, N positions, D head width, M landmarks; C blocks of W positions, S parts of the
blocks. Real tokens come first in each row. See `attention/neighbours.py` for the mechanism and the names.

With T_c = Σ_{j in block c} B̃_j v_j, without the row's first token,

    far_c = Σ T − T_{c−1} − T_c − T_{c+1},    P_c = Z (e ∘ far_c),    e = exp(log ρ − its largest).

Beside the values stand ones, whose sums go the same way; they are a vector of their own here, `sums`. In
memory a block has t_c = Σ exp(score − top_c) v_j, with the scores in units of log 2, so that one pass over
the keys and values suffices: T_c = exp(top_c − log Σ exp(score)) t_c. That is computed again for the backward
pass. There, with U_c = e ∘ (Zᵀ grad P_c), the gradient of T_c has the form of far_c, of U instead of T.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nystromformer.attention.gpu.tiles import load_tile, store_tile

LARGEST_RATIO = tl.constexpr(8.0)
"""That of `attention/neighbours.py`, which a test compares."""
LOG_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def blocks_kernel(
    key, key_b, key_h, key_n, value, value_b, value_h, value_n,
    count, query_means, parts, top, total, sums,
    H, C, scale,
    M: tl.constexpr, M_PAD: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, W: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Write t, (B, H, C, M, D); top, Σ exp(score − top), and the same without the row's first token,
    (B, H, C, M). Grid: (B · H · C,)."""
    slot = tl.program_id(0).to(tl.int64)
    row_head = slot // C
    block = (slot % C).to(tl.int32)
    row = row_head // H
    head = row_head % H
    tokens = tl.load(count + row)
    index_W = block * W + tl.arange(0, W)
    real_W = index_W < tokens
    landmark = tl.arange(0, M_PAD)
    valid_M = landmark < M
    key_WD = load_tile(key + row * key_b + head * key_h, key_n, index_W, real_W, D, D_PAD)
    value_WD = load_tile(value + row * value_b + head * value_h, value_n, index_W, real_W, D, D_PAD)
    mean_MD = load_tile(query_means + row_head * M * D, D, landmark, valid_M, D, D_PAD).to(key_WD.dtype)
    score_MW = tl.dot(mean_MD, tl.trans(key_WD), input_precision=PRECISION) * scale
    score_MW = tl.where(real_W[None, :], score_MW, float("-inf"))
    top_M = tl.max(score_MW, axis=1)
    safe_M = tl.where(top_M == float("-inf"), 0.0, top_M)  # a block of padding alone
    weight_MW = tl.exp2(score_MW - safe_M[:, None])
    total_M = tl.sum(weight_MW, axis=1)
    weight_MW = tl.where((index_W == 0)[None, :], 0.0, weight_MW)
    part_MD = tl.dot(weight_MW.to(value_WD.dtype), value_WD, input_precision=PRECISION)
    store_tile(parts + slot * M * D, D, landmark, valid_M, part_MD, D, D_PAD)
    tl.store(top + slot * M + landmark, top_M, mask=valid_M)
    tl.store(total + slot * M + landmark, total_M, mask=valid_M)
    tl.store(sums + slot * M + landmark, tl.sum(weight_MW, axis=1), mask=valid_M)


@triton.jit
def whole_kernel(
    parts, top, total, sums, log_landmarks, count, whole, whole_sums, normalizer, ratio, log_scale,
    H, C, M: tl.constexpr, M_PAD: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
):  # fmt: skip
    """Write Σ T and its sums, log₂ Σ exp₂(score), e, and log ρ's largest.

    (B, H, M, D), (B, H, M) and (B, H). Grid: (B · H,).
    """
    row_head = tl.program_id(0).to(tl.int64)
    landmark = tl.arange(0, M_PAD)
    valid_M = landmark < M
    top_M = tl.full([M_PAD], float("-inf"), dtype=tl.float32)
    for block in range(0, C):
        slot = row_head * C + block
        top_M = tl.maximum(top_M, tl.load(top + slot * M + landmark, mask=valid_M, other=0.0))
    total_M = tl.zeros([M_PAD], dtype=tl.float32)
    sum_M = tl.zeros([M_PAD], dtype=tl.float32)
    whole_MD = tl.zeros([M_PAD, D_PAD], dtype=tl.float32)
    for block in range(0, C):
        slot = row_head * C + block
        share_M = tl.exp2(tl.load(top + slot * M + landmark, mask=valid_M, other=0.0) - top_M)
        total_M += share_M * tl.load(total + slot * M + landmark, mask=valid_M, other=1.0)
        sum_M += share_M * tl.load(sums + slot * M + landmark, mask=valid_M, other=0.0)
        whole_MD += share_M[:, None] * load_tile(parts + slot * M * D, D, landmark, valid_M, D, D_PAD)
    normalizer_M = top_M + tl.log2(total_M)
    store_tile(whole + row_head * M * D, D, landmark, valid_M, whole_MD / total_M[:, None], D, D_PAD)
    tl.store(whole_sums + row_head * M + landmark, sum_M / total_M, mask=valid_M)
    tl.store(normalizer + row_head * M + landmark, normalizer_M, mask=valid_M)
    log_ratio_M = normalizer_M * LOG_2
    log_ratio_M -= tl.load(log_landmarks + row_head * M + landmark, mask=valid_M, other=0.0)
    most = tl.log(tl.load(count + row_head // H).to(tl.float32) * (LARGEST_RATIO / M))
    log_ratio_M = tl.minimum(log_ratio_M, most)
    largest = tl.max(tl.where(valid_M, log_ratio_M, float("-inf")), axis=0)
    tl.store(log_scale + row_head, largest)
    tl.store(ratio + row_head * M + landmark, tl.exp(log_ratio_M - largest), mask=valid_M)


@triton.jit
def _far_of(
    parts, top, sums, whole, whole_sums, normalizer, far_counts, row, row_head, block, C,
    M: tl.constexpr, M_PAD: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
):  # fmt: skip
    """far_c and its sums; 0 of a block without far tokens, of whose differences rounding is all."""
    landmark = tl.arange(0, M_PAD)
    valid_M = landmark < M
    far_MD = load_tile(whole + row_head * M * D, D, landmark, valid_M, D, D_PAD)
    sum_M = tl.load(whole_sums + row_head * M + landmark, mask=valid_M, other=0.0)
    normalizer_M = tl.load(normalizer + row_head * M + landmark, mask=valid_M, other=0.0)
    for near in range(0, 3):
        other = block + near - 1
        there_M = valid_M & (other >= 0) & (other < C)
        slot = row_head * C + other
        share_M = tl.exp2(
            tl.load(top + slot * M + landmark, mask=there_M, other=float("-inf")) - normalizer_M
        )
        far_MD -= share_M[:, None] * load_tile(parts + slot * M * D, D, landmark, there_M, D, D_PAD)
        sum_M -= share_M * tl.load(sums + slot * M + landmark, mask=there_M, other=0.0)
    count_M = tl.load(far_counts + (row * C + block) * M + landmark, mask=valid_M, other=0.0)
    some = tl.sum(count_M, axis=0) > 0.0
    return tl.where(some, far_MD, 0.0), tl.where(some, sum_M, 0.0), some


@triton.jit
def mixed_kernel(
    parts, top, sums, whole, whole_sums, normalizer, ratio, inverse, far_counts, mixed, mixed_sums,
    H, C, M: tl.constexpr, M_PAD: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
    MIX_PRECISION: tl.constexpr,
):  # fmt: skip
    """Write P, (B, H, C, M, D), and its sums, (B, H, C, M). Grid: (B · H · C,)."""
    slot = tl.program_id(0).to(tl.int64)
    row_head = slot // C
    block = (slot % C).to(tl.int32)
    landmark = tl.arange(0, M_PAD)
    valid_M = landmark < M
    far_MD, sum_M, _ = _far_of(
        parts, top, sums, whole, whole_sums, normalizer, far_counts, row_head // H, row_head, block, C,
        M, M_PAD, D, D_PAD,
    )  # fmt: skip
    ratio_M = tl.load(ratio + row_head * M + landmark, mask=valid_M, other=0.0)
    inverse_MM = load_tile(inverse + row_head * M * M, M, landmark, valid_M, M, M_PAD)
    mixed_MD = tl.dot(inverse_MM, ratio_M[:, None] * far_MD, input_precision=MIX_PRECISION)
    store_tile(mixed + slot * M * D, D, landmark, valid_M, mixed_MD, D, D_PAD)
    mixed_sum_M = tl.sum(inverse_MM * (ratio_M * sum_M)[None, :], axis=1)
    tl.store(mixed_sums + slot * M + landmark, mixed_sum_M, mask=valid_M)


@triton.jit
def mixed_backward_kernel(
    grad_mixed, grad_mixed_sums,
    parts, top, sums, whole, whole_sums, normalizer, ratio, inverse, far_counts,
    summed, summed_sums, grad_inverse, grad_ratio,
    H, C, blocks_of_part, M: tl.constexpr, M_PAD: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
    MIX_PRECISION: tl.constexpr,
):  # fmt: skip
    """Write U in the place of P's gradient and so with its sums; and each part's share of Σ U and of its
    sums, and of the gradients of Z and e, (B, H, S, …). Grid: (B · H, S)."""
    row_head = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    landmark = tl.arange(0, M_PAD)
    valid_M = landmark < M
    ratio_M = tl.load(ratio + row_head * M + landmark, mask=valid_M, other=0.0)
    inverse_MM = load_tile(inverse + row_head * M * M, M, landmark, valid_M, M, M_PAD)
    summed_MD = tl.zeros([M_PAD, D_PAD], dtype=tl.float32)
    summed_sum_M = tl.zeros([M_PAD], dtype=tl.float32)
    grad_inverse_MM = tl.zeros([M_PAD, M_PAD], dtype=tl.float32)
    grad_ratio_M = tl.zeros([M_PAD], dtype=tl.float32)
    for block in range(part * blocks_of_part, tl.minimum((part + 1) * blocks_of_part, C)):
        slot = row_head * C + block
        far_MD, far_sum_M, some = _far_of(
            parts, top, sums, whole, whole_sums, normalizer, far_counts, row_head // H, row_head, block, C,
            M, M_PAD, D, D_PAD,
        )  # fmt: skip
        grad_MD = load_tile(grad_mixed + slot * M * D, D, landmark, valid_M, D, D_PAD)
        grad_sum_M = tl.load(grad_mixed_sums + slot * M + landmark, mask=valid_M, other=0.0)
        grad_MD = tl.where(some, grad_MD, 0.0)
        grad_sum_M = tl.where(some, grad_sum_M, 0.0)
        scaled_MD = ratio_M[:, None] * far_MD
        grad_inverse_MM += tl.dot(grad_MD, tl.trans(scaled_MD), input_precision=MIX_PRECISION)
        grad_inverse_MM += grad_sum_M[:, None] * (ratio_M * far_sum_M)[None, :]
        back_MD = tl.dot(tl.trans(inverse_MM), grad_MD, input_precision=MIX_PRECISION)
        back_sum_M = tl.sum(inverse_MM * grad_sum_M[:, None], axis=0)
        grad_ratio_M += tl.sum(back_MD * far_MD, axis=1) + back_sum_M * far_sum_M
        back_MD = ratio_M[:, None] * back_MD
        back_sum_M = ratio_M * back_sum_M
        summed_MD += back_MD
        summed_sum_M += back_sum_M
        store_tile(grad_mixed + slot * M * D, D, landmark, valid_M, back_MD, D, D_PAD)
        tl.store(grad_mixed_sums + slot * M + landmark, back_sum_M, mask=valid_M)
    slot = row_head * tl.num_programs(1) + part
    store_tile(summed + slot * M * D, D, landmark, valid_M, summed_MD, D, D_PAD)
    tl.store(summed_sums + slot * M + landmark, summed_sum_M, mask=valid_M)
    store_tile(grad_inverse + slot * M * M, M, landmark, valid_M, grad_inverse_MM, M, M_PAD)
    tl.store(grad_ratio + slot * M + landmark, grad_ratio_M, mask=valid_M)


@triton.jit
def far_gradients(
    key_WD, value_WD, index_W, real_W, query_means, normalizer, turned, turned_sums, summed, summed_sums,
    grad_query_means, row_head, block, C, scale, score_scale,
    M: tl.constexpr, M_PAD: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
    MIX: tl.constexpr, PRECISION: tl.constexpr, MIX_PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of a block's keys (to be scaled) and values through T; writes the block's share of Q̃'s.

    `turned` is U and `summed` Σ U, with their sums beside them. What the softmax over the tokens takes off
    every score's gradient, Σ_j B̃_j grad B̃_j, is just what ρ gives back to it.
    """
    landmark = tl.arange(0, M_PAD)
    valid_M = landmark < M
    grad_MD = load_tile(summed + row_head * M * D, D, landmark, valid_M, D, D_PAD)
    grad_sum_M = tl.load(summed_sums + row_head * M + landmark, mask=valid_M, other=0.0)
    for near in range(0, 3):
        other = block + near - 1
        there_M = valid_M & (other >= 0) & (other < C)
        slot = row_head * C + other
        grad_MD -= load_tile(turned + slot * M * D, D, landmark, there_M, D, D_PAD)
        grad_sum_M -= tl.load(turned_sums + slot * M + landmark, mask=there_M, other=0.0)
    grad_MD = grad_MD.to(MIX)
    mean_MD = load_tile(query_means + row_head * M * D, D, landmark, valid_M, D, D_PAD)
    score_WM = tl.dot(key_WD, tl.trans(mean_MD.to(key_WD.dtype)), input_precision=PRECISION) * score_scale
    normalizer_M = tl.load(normalizer + row_head * M + landmark, mask=valid_M, other=0.0)
    factor_WM = tl.exp2(score_WM - normalizer_M[None, :])
    factor_WM = tl.where(real_W[:, None] & valid_M[None, :], factor_WM, 0.0)
    other_W = index_W > 0  # the first token is near to all
    grad_factor_WM = tl.dot(value_WD.to(MIX), tl.trans(grad_MD), input_precision=MIX_PRECISION)
    grad_factor_WM = tl.where(other_W[:, None], grad_factor_WM + grad_sum_M[None, :], 0.0)
    grad_score_WM = (factor_WM * grad_factor_WM).to(MIX)
    factor_WM = tl.where(other_W[:, None], factor_WM, 0.0).to(MIX)
    grad_value_WD = tl.dot(factor_WM, grad_MD, input_precision=MIX_PRECISION)
    grad_key_WD = tl.dot(grad_score_WM, mean_MD.to(MIX), input_precision=MIX_PRECISION)
    turned_MW = tl.trans(grad_score_WM)
    grad_mean_MD = tl.dot(turned_MW, key_WD.to(MIX), input_precision=MIX_PRECISION) * scale
    slot = row_head * C + block
    store_tile(grad_query_means + slot * M * D, D, landmark, valid_M, grad_mean_MD, D, D_PAD)
    return grad_key_WD, grad_value_WD
