"""B̃ V: every landmark query attends to the real tokens of its row, and K̃ on the way; and the backward pass
of B̃ V.

Shapes: B rows, H heads, N positions, D head width, M landmarks; P positions of a tile, S parts of the
positions, one program each. Scores are in units of log 2, as the processor's exponential is.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nystromformer.attention.gpu.convolution import load_band, load_window
from nystromformer.attention.gpu.tiles import (
    load_share,
    load_tile,
    real_count,
    real_tokens,
    segments_at,
    store_tile,
)


@triton.jit
def gather_kernel(
    key, key_b, key_h, key_n,
    value, value_b, value_h, value_n,
    query_means, segment, count, gathered, key_sums, top, total,
    H, N, tokens_of_part, scale,
    M: tl.constexpr, M_PAD: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
    MASKED: tl.constexpr, P: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write each part's Σ exp(score − top) V to `gathered` (B, H, S, M, D), and `top` and `total` (…, M);
    and to `key_sums` (B, H, S, M, D) the sum of its keys of every segment. Grid: (B · H, S).
    """
    row_head = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    row = row_head // H
    head = row_head % H
    key += row * key_b + head * key_h
    value += row * value_b + head * value_h
    slot = row_head * tl.num_programs(1) + part
    landmark = tl.arange(0, M_PAD)
    valid_M = landmark < M
    mean_MD = load_tile(query_means + row_head * M * D, D, landmark, valid_M, D, D_PAD)
    mean_MD = mean_MD.to(key.dtype.element_ty)
    top_M = tl.full([M_PAD], float("-inf"), dtype=tl.float32)
    total_M = tl.zeros([M_PAD], dtype=tl.float32)
    sum_MD = tl.zeros([M_PAD, D_PAD], dtype=tl.float32)
    key_sum_MD = tl.zeros([M_PAD, D_PAD], dtype=tl.float32)
    tokens = real_count(count, row, N, MASKED)
    last = tl.minimum((part + 1) * tokens_of_part, N)
    for start in range(part * tokens_of_part, last, P):
        index_P = start + tl.arange(0, P)
        real_P = real_tokens(segment, row, index_P, N, MASKED) & (index_P < last)
        key_PD = load_tile(key, key_n, index_P, real_P, D, D_PAD)
        value_PD = load_tile(value, value_n, index_P, real_P, D, D_PAD)
        score_MP = tl.dot(mean_MD, tl.trans(key_PD), input_precision=PRECISION) * scale
        score_MP = tl.where(real_P[None, :], score_MP, float("-inf"))
        new_M = tl.maximum(top_M, tl.max(score_MP, axis=1))
        # Without a real token so far, −inf − (−inf) would be no number.
        safe_M = tl.where(new_M == float("-inf"), 0.0, new_M)
        weight_MP = tl.exp2(score_MP - safe_M[:, None])
        shrink_M = tl.exp2(top_M - safe_M)
        total_M = total_M * shrink_M + tl.sum(weight_MP, axis=1)
        sum_MD = sum_MD * shrink_M[:, None] + tl.dot(
            weight_MP.to(value_PD.dtype), value_PD, input_precision=PRECISION
        )
        top_M = new_M
        # A product of ones and zeros with the keys: exact in half precision, in float32 by three of TF32.
        segment_P = segments_at(segment, row, index_P, real_P, tokens, N, M, MASKED)
        member_MP = tl.where(landmark[:, None] == segment_P[None, :], 1.0, 0.0).to(key_PD.dtype)
        key_sum_MD += tl.dot(member_MP, key_PD, input_precision="tf32x3")
    store_tile(gathered + slot * M * D, D, landmark, valid_M, sum_MD, D, D_PAD)
    store_tile(key_sums + slot * M * D, D, landmark, valid_M, key_sum_MD, D, D_PAD)
    tl.store(top + slot * M + landmark, top_M, mask=valid_M)
    tl.store(total + slot * M + landmark, total_M, mask=valid_M)


@triton.jit
def gather_backward_kernel(
    grad_out, grad_out_b, grad_out_h, grad_out_n,
    key, key_b, key_h, key_n,
    value, value_b, value_h, value_n,
    query_means, normalizer, grad_gathered, delta, grad_key_means, grad_mixed, inverses_share, weight,
    segment, count,
    grad_key, grad_value, grad_query_means,
    H, N, tokens_of_part, scale, score_scale,
    K: tl.constexpr, M: tl.constexpr, M_PAD: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
    MASKED: tl.constexpr, CONVOLVED: tl.constexpr, P: tl.constexpr, W: tl.constexpr,
    MIX: tl.constexpr, PRECISION: tl.constexpr, MIX_PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the gradients of keys and values, and each part's share of that of Q̃.

    Y = B̃ V with B̃ = softmax(score): dV = B̃ᵀ dY, dscore = B̃ ∘ (dY Vᵀ − delta), delta = Σ dY ∘ Y.

    `grad_key` and `grad_value` are (B, N, H, D) in memory; `grad_query_means` (B, H, S, M, D), to the first
    part of which `inverses_share` is added, that of Z in the gradient of Q̃, (B, H, M, D). Grid: (B · H, S).
    """
    row_head = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    row = row_head // H
    head = row_head % H
    start_of_means = row_head * M * D
    key += row * key_b + head * key_h
    value += row * value_b + head * value_h
    grad_out += row * grad_out_b + head * grad_out_h
    grad_key += (row * N * H + head) * D
    grad_value += (row * N * H + head) * D
    tokens = real_count(count, row, N, MASKED)
    landmark = tl.arange(0, M_PAD)
    valid_M = landmark < M
    mean_MD = load_tile(query_means + start_of_means, D, landmark, valid_M, D, D_PAD)
    mean_MD = mean_MD.to(key.dtype.element_ty)
    grad_gathered_MD = load_tile(grad_gathered + start_of_means, D, landmark, valid_M, D, D_PAD).to(MIX)
    log_total_M = tl.load(normalizer + row_head * M + landmark, mask=valid_M, other=0.0)
    delta_M = tl.load(delta + row_head * M + landmark, mask=valid_M, other=0.0)
    grad_mean_MD = tl.zeros([M_PAD, D_PAD], dtype=tl.float32)
    if CONVOLVED:
        band_PW = load_band(weight + head * K, K, P, W, True).to(key.dtype.element_ty)
    last = tl.minimum((part + 1) * tokens_of_part, N)
    for start in range(part * tokens_of_part, last, P):
        index_P = start + tl.arange(0, P)
        inside_P = index_P < last
        real_P = real_tokens(segment, row, index_P, N, MASKED) & inside_P
        key_PD = load_tile(key, key_n, index_P, real_P, D, D_PAD)
        value_PD = load_tile(value, value_n, index_P, real_P, D, D_PAD)
        score_PM = tl.dot(key_PD, tl.trans(mean_MD), input_precision=PRECISION) * score_scale
        factor_PM = tl.exp2(score_PM - log_total_M[None, :])
        factor_PM = tl.where(real_P[:, None] & valid_M[None, :], factor_PM, 0.0)
        grad_value_PD = tl.dot(factor_PM.to(MIX), grad_gathered_MD, input_precision=MIX_PRECISION)
        grad_factor_PM = tl.dot(value_PD.to(MIX), tl.trans(grad_gathered_MD), input_precision=MIX_PRECISION)
        grad_score_PM = (factor_PM * (grad_factor_PM - delta_M[None, :])).to(MIX)
        grad_mean_MD += tl.dot(tl.trans(grad_score_PM), key_PD.to(MIX), input_precision=MIX_PRECISION)
        grad_key_PD = tl.dot(grad_score_PM, mean_MD.to(MIX), input_precision=MIX_PRECISION) * scale
        grad_key_PD += load_share(
            grad_key_means + start_of_means, segment, row, index_P, real_P, tokens, N, M, D, D_PAD, MASKED
        )
        if MASKED:
            # In a short row each landmark is a token, and X = V.
            own_P = real_P & (tokens <= M)
            grad_value_PD += load_share(
                grad_mixed + start_of_means, segment, row, index_P, own_P, tokens, N, M, D, D_PAD, MASKED
            )
        if CONVOLVED:
            grad_out_WD = load_window(grad_out, grad_out_n, segment, row, start, N, K, D, D_PAD, MASKED, W)
            grad_value_PD += tl.dot(band_PW, grad_out_WD, input_precision=PRECISION)
        grad_value_PD = tl.where(real_P[:, None], grad_value_PD, 0.0)
        store_tile(grad_key, H * D, index_P, inside_P, grad_key_PD, D, D_PAD)
        store_tile(grad_value, H * D, index_P, inside_P, grad_value_PD, D, D_PAD)
    first_M = valid_M & (part == 0)
    share_MD = load_tile(inverses_share + start_of_means, D, landmark, first_M, D, D_PAD)
    grad_mean_MD = grad_mean_MD * scale + share_MD
    slot = row_head * tl.num_programs(1) + part
    store_tile(grad_query_means + slot * M * D, D, landmark, valid_M, grad_mean_MD, D, D_PAD)
