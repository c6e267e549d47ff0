"""Exact neighbours and the far part over one softmax, token by token, and their backward pass.

Shapes: B rows, H heads, N positions, D head width, M landmarks; C blocks of W positions. Real tokens come
first in each row. What a block's tokens share, P (`mixed`) and its sums for values of one, is of `far.py`;
see `attention/neighbours.py` for the mechanism and the names.

With z = grad_out · out, the gradient of a weight's score is the weight times what it weighs compared with z.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nystromformer.attention.gpu.far import far_gradients
from nystromformer.attention.gpu.tiles import load_tile, store_tile


@triton.jit
def _factor(query_WD, mean_MD, scale, M: tl.constexpr, M_PAD: tl.constexpr, PRECISION: tl.constexpr):
    """exp(Q K̃ᵀ/√D) over its sum, (W, M_PAD), and the logarithm of that sum."""
    score_WM = tl.dot(query_WD, tl.trans(mean_MD), input_precision=PRECISION) * scale
    score_WM = tl.where((tl.arange(0, M_PAD) < M)[None, :], score_WM, float("-inf"))
    top_W = tl.max(score_WM, axis=1)
    weight_WM = tl.exp(score_WM - top_W[:, None])
    total_W = tl.sum(weight_WM, axis=1)
    return weight_WM / total_W[:, None], top_W + tl.log(total_W)


@triton.jit
def _shares(log_near_W, log_far_W, sum_W, least_W):
    """Near and far part of the softmax's sum, each over the whole; s; and the lower bound as it is used."""
    top_W = tl.maximum(log_near_W, log_far_W)
    near_W = tl.exp(tl.maximum(log_near_W - top_W, -60.0))
    far_W = tl.exp(log_far_W - top_W)
    positive_W = tl.maximum(sum_W, 0.0)
    total_W = near_W + far_W * positive_W
    bound_W = tl.maximum(least_W, 1e-30)
    trust_W = tl.minimum(positive_W / bound_W, 1.0)
    return near_W / total_W, far_W / total_W, trust_W, bound_W


@triton.jit
def _first(key, value, D: tl.constexpr, D_PAD: tl.constexpr):
    """Key and value of a row's first token, in float32."""
    width = tl.arange(0, D_PAD)
    key_D = tl.load(key + width, mask=width < D, other=0.0).to(tl.float32)
    return key_D, tl.load(value + width, mask=width < D, other=0.0).to(tl.float32)


@triton.jit
def near_kernel(
    query, query_b, query_h, query_n, key, key_b, key_h, key_n, value, value_b, value_h, value_n,
    count, key_means, mixed, mixed_sums, far_counts, log_scale, out, log_near, log_far,
    H, N, C, scale,
    M: tl.constexpr, M_PAD: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, W: tl.constexpr,
    PRECISION: tl.constexpr, MIX_PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the output, 0 at padding, and the logarithms of both sums. Grid: (B · H · C,)."""
    slot = tl.program_id(0).to(tl.int64)
    row_head = slot // C
    block = (slot % C).to(tl.int32)
    row = row_head // H
    head = row_head % H
    query += row * query_b + head * query_h
    key += row * key_b + head * key_h
    value += row * value_b + head * value_h
    tokens = tl.load(count + row)
    place_W = tl.arange(0, W)
    index_W = block * W + place_W
    real_W = index_W < tokens
    landmark = tl.arange(0, M_PAD)
    valid_M = landmark < M
    query_WD = load_tile(query, query_n, index_W, real_W, D, D_PAD)
    mean_MD = load_tile(key_means + row_head * M * D, D, landmark, valid_M, D, D_PAD)
    factor_WM, log_far_W = _factor(query_WD, mean_MD.to(query_WD.dtype), scale, M, M_PAD, PRECISION)
    mixed_MD = load_tile(mixed + slot * M * D, D, landmark, valid_M, D, D_PAD)
    far_WD = tl.dot(factor_WM, mixed_MD, input_precision=MIX_PRECISION)
    sum_M = tl.load(mixed_sums + slot * M + landmark, mask=valid_M, other=0.0)
    count_M = tl.load(far_counts + (row * C + block) * M + landmark, mask=valid_M, other=0.0)
    largest = tl.load(log_scale + row_head)
    sum_W = tl.sum(factor_WM * sum_M[None, :], axis=1)
    least_W = tl.sum(factor_WM * count_M[None, :], axis=1) * tl.exp(-largest)
    first_key_D, first_value_D = _first(key, value, D, D_PAD)
    beside = block >= 2
    top_W = tl.sum(query_WD.to(tl.float32) * first_key_D[None, :], axis=1) * scale
    top_W = tl.where(beside, top_W, float("-inf"))
    total_W = tl.where(beside, 1.0, 0.0) + tl.zeros([W], dtype=tl.float32)
    near_WD = total_W[:, None] * first_value_D[None, :]
    for near in range(0, 3):
        other_W = (block + near - 1) * W + place_W
        there_W = (other_W >= 0) & (other_W < tokens)
        key_WD = load_tile(key, key_n, other_W, there_W, D, D_PAD)
        value_WD = load_tile(value, value_n, other_W, there_W, D, D_PAD)
        score_WW = tl.dot(query_WD, tl.trans(key_WD), input_precision=PRECISION) * scale
        score_WW = tl.where(there_W[None, :], score_WW, float("-inf"))
        new_W = tl.maximum(top_W, tl.max(score_WW, axis=1))
        safe_W = tl.where(new_W == float("-inf"), 0.0, new_W)  # nothing is near yet
        weight_WW = tl.exp(score_WW - safe_W[:, None])
        shrink_W = tl.exp(top_W - safe_W)
        total_W = total_W * shrink_W + tl.sum(weight_WW, axis=1)
        near_WD = near_WD * shrink_W[:, None]
        near_WD += tl.dot(weight_WW.to(value_WD.dtype), value_WD, input_precision=PRECISION)
        top_W = new_W
    # A block of padding alone may have nothing near.
    total_W = tl.where(total_W == 0.0, 1.0, total_W)
    log_near_W = tl.where(top_W == float("-inf"), 0.0, top_W) + tl.log(total_W)
    near_share_W, far_share_W, trust_W, _ = _shares(log_near_W, log_far_W + largest, sum_W, least_W)
    out_WD = (near_share_W / total_W)[:, None] * near_WD + (trust_W * far_share_W)[:, None] * far_WD
    out_WD = tl.where(real_W[:, None], out_WD, 0.0)
    inside_W = index_W < N
    store_tile(out + (row * N * H + head) * D, H * D, index_W, inside_W, out_WD, D, D_PAD)
    tl.store(log_near + row_head * N + index_W, log_near_W, mask=inside_W)
    tl.store(log_far + row_head * N + index_W, log_far_W, mask=inside_W)


@triton.jit
def near_backward_query_kernel(
    grad_out, grad_b, grad_h, grad_n, out,
    query, query_b, query_h, query_n, key, key_b, key_h, key_n, value, value_b, value_h, value_n,
    count, key_means, mixed, mixed_sums, far_counts, log_scale, log_near, log_far,
    grad_query, grad_key_means, grad_mixed, grad_mixed_sums, grad_first_key, grad_first_value,
    share, compared,
    H, N, C, scale,
    M: tl.constexpr, M_PAD: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, W: tl.constexpr,
    MIX: tl.constexpr, PRECISION: tl.constexpr, MIX_PRECISION: tl.constexpr,
):  # fmt: skip
    """Write all gradients but those of near keys and values, and what these need: each token's share of the
    near part and z. Those of K̃ and of the first token are each block's, to be summed. Grid: (B · H · C,)."""
    slot = tl.program_id(0).to(tl.int64)
    row_head = slot // C
    block = (slot % C).to(tl.int32)
    row = row_head // H
    head = row_head % H
    query += row * query_b + head * query_h
    key += row * key_b + head * key_h
    value += row * value_b + head * value_h
    start_of_head = (row * N * H + head) * D
    tokens = tl.load(count + row)
    place_W = tl.arange(0, W)
    index_W = block * W + place_W
    inside_W = index_W < N
    real_W = index_W < tokens
    landmark = tl.arange(0, M_PAD)
    width = tl.arange(0, D_PAD)
    valid_M = landmark < M
    query_WD = load_tile(query, query_n, index_W, real_W, D, D_PAD)
    grad_WD = load_tile(grad_out + row * grad_b + head * grad_h, grad_n, index_W, real_W, D, D_PAD)
    exact_WD = grad_WD.to(tl.float32)
    out_WD = load_tile(out + start_of_head, H * D, index_W, real_W, D, D_PAD).to(tl.float32)
    z_W = tl.sum(exact_WD * out_WD, axis=1)
    mean_MD = load_tile(key_means + row_head * M * D, D, landmark, valid_M, D, D_PAD)
    factor_WM, _ = _factor(query_WD, mean_MD.to(query_WD.dtype), scale, M, M_PAD, PRECISION)
    mixed_MD = load_tile(mixed + slot * M * D, D, landmark, valid_M, D, D_PAD)
    through_WM = tl.dot(grad_WD.to(MIX), tl.trans(mixed_MD.to(MIX)), input_precision=MIX_PRECISION)
    sum_M = tl.load(mixed_sums + slot * M + landmark, mask=valid_M, other=0.0)
    count_M = tl.load(far_counts + (row * C + block) * M + landmark, mask=valid_M, other=0.0)
    largest = tl.load(log_scale + row_head)
    sum_W = tl.sum(factor_WM * sum_M[None, :], axis=1)
    least_W = tl.sum(factor_WM * count_M[None, :], axis=1) * tl.exp(-largest)
    y_W = tl.sum(factor_WM * through_WM, axis=1)
    log_near_W = tl.load(log_near + row_head * N + index_W, mask=inside_W, other=0.0)
    log_far_W = tl.load(log_far + row_head * N + index_W, mask=inside_W, other=0.0)
    near_share_W, far_share_W, trust_W, bound_W = _shares(log_near_W, log_far_W + largest, sum_W, least_W)
    near_share_W = tl.where(real_W, near_share_W, 0.0)
    far_share_W = tl.where(real_W, far_share_W, 0.0)
    positive_W = sum_W > 0.0
    fading_W = tl.where(positive_W & (sum_W < bound_W), y_W / bound_W, 0.0)
    grad_sum_W = far_share_W * (fading_W - tl.where(positive_W, z_W, 0.0))
    grad_least_W = -far_share_W * fading_W * trust_W * tl.exp(-largest)
    weight_W = far_share_W * trust_W
    grad_score_WM = weight_W[:, None] * through_WM + grad_sum_W[:, None] * sum_M[None, :]
    grad_score_WM = factor_WM * (grad_score_WM + grad_least_W[:, None] * count_M[None, :])
    weighted_WM = (weight_W[:, None] * factor_WM).to(MIX)
    grad_mixed_MD = tl.dot(tl.trans(weighted_WM), grad_WD.to(MIX), input_precision=MIX_PRECISION)
    store_tile(grad_mixed + slot * M * D, D, landmark, valid_M, grad_mixed_MD, D, D_PAD)
    grad_sum_M = tl.sum(grad_sum_W[:, None] * factor_WM, axis=0)
    tl.store(grad_mixed_sums + slot * M + landmark, grad_sum_M, mask=valid_M)
    grad_score_WM = grad_score_WM.to(MIX)
    grad_mean_MD = tl.dot(tl.trans(grad_score_WM), query_WD.to(MIX), input_precision=MIX_PRECISION)
    store_tile(grad_key_means + slot * M * D, D, landmark, valid_M, grad_mean_MD * scale, D, D_PAD)
    grad_query_WD = tl.dot(grad_score_WM, mean_MD.to(MIX), input_precision=MIX_PRECISION)
    # The first token
    first_key_D, first_value_D = _first(key, value, D, D_PAD)
    score_W = tl.sum(query_WD.to(tl.float32) * first_key_D[None, :], axis=1) * scale
    first_W = tl.where(block >= 2, near_share_W * tl.exp(score_W - log_near_W), 0.0)
    grad_first_W = first_W * (tl.sum(exact_WD * first_value_D[None, :], axis=1) - z_W)
    grad_query_WD += grad_first_W[:, None] * first_key_D[None, :]
    grad_first_key_D = tl.sum(grad_first_W[:, None] * query_WD.to(tl.float32), axis=0) * scale
    tl.store(grad_first_key + slot * D + width, grad_first_key_D, mask=width < D)
    grad_first_value_D = tl.sum(first_W[:, None] * exact_WD, axis=0)
    tl.store(grad_first_value + slot * D + width, grad_first_value_D, mask=width < D)
    for near in range(0, 3):
        other_W = (block + near - 1) * W + place_W
        there_W = (other_W >= 0) & (other_W < tokens)
        key_WD = load_tile(key, key_n, other_W, there_W, D, D_PAD)
        value_WD = load_tile(value, value_n, other_W, there_W, D, D_PAD)
        score_WW = tl.dot(query_WD, tl.trans(key_WD), input_precision=PRECISION) * scale
        weight_WW = tl.where(there_W[None, :], tl.exp(score_WW - log_near_W[:, None]), 0.0)
        grad_WW = tl.dot(grad_WD, tl.trans(value_WD), input_precision=PRECISION)
        grad_score_WW = near_share_W[:, None] * weight_WW * (grad_WW - z_W[:, None])
        grad_query_WD += tl.dot(grad_score_WW.to(key_WD.dtype), key_WD, input_precision=PRECISION)
    grad_query_WD = grad_query_WD * scale
    store_tile(grad_query + start_of_head, H * D, index_W, inside_W, grad_query_WD, D, D_PAD)
    tl.store(share + row_head * N + index_W, near_share_W, mask=inside_W)
    tl.store(compared + row_head * N + index_W, z_W, mask=inside_W)


@triton.jit
def near_backward_key_kernel(
    grad_out, grad_b, grad_h, grad_n,
    query, query_b, query_h, query_n, key, key_b, key_h, key_n, value, value_b, value_h, value_n,
    count, query_means, normalizer, turned, turned_sums, summed, summed_sums,
    log_near, share, compared, grad_key, grad_value, grad_query_means,
    H, N, C, scale, score_scale,
    M: tl.constexpr, M_PAD: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, W: tl.constexpr,
    MIX: tl.constexpr, PRECISION: tl.constexpr, MIX_PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the gradients of keys and values, 0 at padding; what is the first token's by all others is not
    among it. That of Q̃ is each block's, to be summed. Grid: (B · H · C,)."""
    slot = tl.program_id(0).to(tl.int64)
    row_head = slot // C
    block = (slot % C).to(tl.int32)
    row = row_head // H
    head = row_head % H
    query += row * query_b + head * query_h
    grad_out += row * grad_b + head * grad_h
    start_of_head = (row * N * H + head) * D
    tokens = tl.load(count + row)
    place_W = tl.arange(0, W)
    index_W = block * W + place_W
    inside_W = index_W < N
    real_W = index_W < tokens
    key_WD = load_tile(key + row * key_b + head * key_h, key_n, index_W, real_W, D, D_PAD)
    value_WD = load_tile(value + row * value_b + head * value_h, value_n, index_W, real_W, D, D_PAD)
    grad_key_WD, grad_value_WD = far_gradients(
        key_WD, value_WD, index_W, real_W, query_means, normalizer, turned, turned_sums, summed, summed_sums,
        grad_query_means, row_head, block, C, scale, score_scale,
        M, M_PAD, D, D_PAD, MIX, PRECISION, MIX_PRECISION,
    )  # fmt: skip
    for near in range(0, 3):
        other_W = (block + near - 1) * W + place_W
        there_W = (other_W >= 0) & (other_W < tokens)
        query_WD = load_tile(query, query_n, other_W, there_W, D, D_PAD)
        grad_WD = load_tile(grad_out, grad_n, other_W, there_W, D, D_PAD)
        log_near_W = tl.load(log_near + row_head * N + other_W, mask=there_W, other=0.0)
        share_W = tl.load(share + row_head * N + other_W, mask=there_W, other=0.0)
        z_W = tl.load(compared + row_head * N + other_W, mask=there_W, other=0.0)
        score_WW = tl.dot(key_WD, tl.trans(query_WD), input_precision=PRECISION) * scale
        weight_WW = share_W[None, :] * tl.exp(score_WW - log_near_W[None, :])
        weight_WW = tl.where(real_W[:, None] & there_W[None, :], weight_WW, 0.0)
        grad_WW = tl.dot(value_WD, tl.trans(grad_WD), input_precision=PRECISION)
        grad_score_WW = weight_WW * (grad_WW - z_W[None, :])
        grad_value_WD += tl.dot(weight_WW.to(grad_WD.dtype), grad_WD, input_precision=PRECISION)
        grad_key_WD += tl.dot(grad_score_WW.to(query_WD.dtype), query_WD, input_precision=PRECISION)
    grad_key_WD = grad_key_WD * scale
    store_tile(grad_key + start_of_head, H * D, index_W, inside_W, grad_key_WD, D, D_PAD)
    store_tile(grad_value + start_of_head, H * D, index_W, inside_W, grad_value_WD, D, D_PAD)
