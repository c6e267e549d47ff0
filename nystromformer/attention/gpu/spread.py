"""F̃ X + convolution(V): every token attends to the landmarks of its row; and its backward pass.

Shapes: B rows, H heads, N positions, D head width, M landmarks; P positions of a tile, W of its window,
S parts of the positions, one program each. Scores are in units of log 2.

X holds entries as large as the inverse's, so that products with it run in a type of float32's range.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nystromformer.attention.gpu.convolution import load_band, load_window
from nystromformer.attention.gpu.tiles import load_share, load_tile, real_count, real_tokens, store_tile


@triton.jit
def _factor(query_PD, mean_MD, present, score_scale, M_PAD: tl.constexpr, PRECISION: tl.constexpr):
    """Rows of F̃ = softmax(Q K̃ᵀ/√D), (P, M_PAD), 0 at absent landmarks."""
    score_PM = tl.dot(query_PD, tl.trans(mean_MD), input_precision=PRECISION) * score_scale
    score_PM = tl.where((tl.arange(0, M_PAD) < present)[None, :], score_PM, float("-inf"))
    weight_PM = tl.exp2(score_PM - tl.max(score_PM, axis=1)[:, None])
    return weight_PM / tl.sum(weight_PM, axis=1)[:, None]


@triton.jit
def _present(tokens, M: tl.constexpr):
    """How many landmarks a row has; a row of padding alone keeps one, so that its softmax is a number."""
    return tl.maximum(tl.minimum(tokens, M), 1)


@triton.jit
def spread_kernel(
    query, query_b, query_h, query_n,
    value, value_b, value_h, value_n,
    key_means, mixed, weight, segment, count, out,
    H, N, tokens_of_part, score_scale,
    K: tl.constexpr, M: tl.constexpr, M_PAD: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
    MASKED: tl.constexpr, CONVOLVED: tl.constexpr, P: tl.constexpr, W: tl.constexpr,
    MIX: tl.constexpr, PRECISION: tl.constexpr, MIX_PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the output, (B, N, H, D) in memory, 0 at padding. Grid: (B · H, S)."""
    row_head = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    row = row_head // H
    head = row_head % H
    start_of_means = row_head * M * D
    query += row * query_b + head * query_h
    value += row * value_b + head * value_h
    out += (row * N * H + head) * D
    present = _present(real_count(count, row, N, MASKED), M)
    landmark = tl.arange(0, M_PAD)
    valid_M = landmark < M
    mean_MD = load_tile(key_means + start_of_means, D, landmark, valid_M, D, D_PAD)
    mean_MD = mean_MD.to(query.dtype.element_ty)
    mixed_MD = load_tile(mixed + start_of_means, D, landmark, valid_M, D, D_PAD)
    size = 1.0
    if MIX == tl.bfloat16:  # noqa: SIM300 (a constant of the compilation)
        # X's entries are large and cancel: float16 has eight times as fine steps, once they are in its range.
        largest = tl.max(tl.max(tl.abs(mixed_MD), axis=1), axis=0)
        size = tl.where(largest > 0.0, largest, 1.0)
        mixed_MD = (mixed_MD / size).to(tl.float16)
    if CONVOLVED:
        band_PW = load_band(weight + head * K, K, P, W, False).to(value.dtype.element_ty)
    last = tl.minimum((part + 1) * tokens_of_part, N)
    for start in range(part * tokens_of_part, last, P):
        index_P = start + tl.arange(0, P)
        inside_P = index_P < last
        real_P = real_tokens(segment, row, index_P, N, MASKED) & inside_P
        query_PD = load_tile(query, query_n, index_P, real_P, D, D_PAD)
        factor_PM = _factor(query_PD, mean_MD, present, score_scale, M_PAD, PRECISION)
        out_PD = tl.dot(factor_PM.to(mixed_MD.dtype), mixed_MD, input_precision=MIX_PRECISION) * size
        if CONVOLVED:
            value_WD = load_window(value, value_n, segment, row, start, N, K, D, D_PAD, MASKED, W)
            out_PD += tl.dot(band_PW, value_WD, input_precision=PRECISION)
        out_PD = tl.where(real_P[:, None], out_PD, 0.0)
        store_tile(out, H * D, index_P, inside_P, out_PD, D, D_PAD)


@triton.jit
def _grad_score(factor_PM, grad_out_PD, mixed_MD, MIX: tl.constexpr, MIX_PRECISION: tl.constexpr):
    """Gradient of F̃'s scores from that of F̃ X, (P, M_PAD) in MIX."""
    grad_factor_PM = tl.dot(grad_out_PD.to(MIX), tl.trans(mixed_MD), input_precision=MIX_PRECISION)
    delta_P = tl.sum(factor_PM * grad_factor_PM, axis=1)
    return (factor_PM * (grad_factor_PM - delta_P[:, None])).to(MIX)


@triton.jit
def spread_backward_means_kernel(
    grad_out, grad_out_b, grad_out_h, grad_out_n,
    query, query_b, query_h, query_n,
    key_means, mixed, segment, count, grad_mixed, grad_key_means,
    H, N, tokens_of_part, scale, score_scale,
    M: tl.constexpr, M_PAD: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
    MASKED: tl.constexpr, P: tl.constexpr,
    MIX: tl.constexpr, PRECISION: tl.constexpr, MIX_PRECISION: tl.constexpr,
):  # fmt: skip
    """Write each part's share of the gradients of X and K̃, (B, H, S, M, D). Grid: (B · H, S)."""
    row_head = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    row = row_head // H
    head = row_head % H
    start_of_means = row_head * M * D
    query += row * query_b + head * query_h
    grad_out += row * grad_out_b + head * grad_out_h
    present = _present(real_count(count, row, N, MASKED), M)
    landmark = tl.arange(0, M_PAD)
    valid_M = landmark < M
    mean_MD = load_tile(key_means + start_of_means, D, landmark, valid_M, D, D_PAD)
    mean_MD = mean_MD.to(query.dtype.element_ty)
    mixed_MD = load_tile(mixed + start_of_means, D, landmark, valid_M, D, D_PAD).to(MIX)
    grad_mixed_MD = tl.zeros([M_PAD, D_PAD], dtype=tl.float32)
    grad_mean_MD = tl.zeros([M_PAD, D_PAD], dtype=tl.float32)
    last = tl.minimum((part + 1) * tokens_of_part, N)
    for start in range(part * tokens_of_part, last, P):
        index_P = start + tl.arange(0, P)
        real_P = real_tokens(segment, row, index_P, N, MASKED) & (index_P < last)
        query_PD = load_tile(query, query_n, index_P, real_P, D, D_PAD)
        grad_out_PD = load_tile(grad_out, grad_out_n, index_P, real_P, D, D_PAD)
        factor_PM = _factor(query_PD, mean_MD, present, score_scale, M_PAD, PRECISION)
        grad_mixed_MD += tl.dot(
            tl.trans(factor_PM.to(MIX)), grad_out_PD.to(MIX), input_precision=MIX_PRECISION
        )
        grad_score_PM = _grad_score(factor_PM, grad_out_PD, mixed_MD, MIX, MIX_PRECISION)
        grad_mean_MD += tl.dot(tl.trans(grad_score_PM), query_PD.to(MIX), input_precision=MIX_PRECISION)
    slot = row_head * tl.num_programs(1) + part
    store_tile(grad_mixed + slot * M * D, D, landmark, valid_M, grad_mixed_MD, D, D_PAD)
    store_tile(grad_key_means + slot * M * D, D, landmark, valid_M, grad_mean_MD * scale, D, D_PAD)


@triton.jit
def spread_backward_query_kernel(
    grad_out, grad_out_b, grad_out_h, grad_out_n,
    query, query_b, query_h, query_n,
    key_means, mixed, grad_query_means, segment, count, grad_query,
    H, N, tokens_of_part, scale, score_scale,
    M: tl.constexpr, M_PAD: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
    MASKED: tl.constexpr, P: tl.constexpr,
    MIX: tl.constexpr, PRECISION: tl.constexpr, MIX_PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the gradient of the queries, (B, N, H, D) in memory. Grid: (B · H, S).

    F̃ is computed a third time: adding the share of Q̃ to a gradient written before would move as many
    bytes, and round twice.
    """
    row_head = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    row = row_head // H
    head = row_head % H
    start_of_means = row_head * M * D
    query += row * query_b + head * query_h
    grad_out += row * grad_out_b + head * grad_out_h
    grad_query += (row * N * H + head) * D
    tokens = real_count(count, row, N, MASKED)
    present = _present(tokens, M)
    landmark = tl.arange(0, M_PAD)
    valid_M = landmark < M
    mean_MD = load_tile(key_means + start_of_means, D, landmark, valid_M, D, D_PAD)
    mean_MD = mean_MD.to(query.dtype.element_ty)
    mixed_MD = load_tile(mixed + start_of_means, D, landmark, valid_M, D, D_PAD).to(MIX)
    last = tl.minimum((part + 1) * tokens_of_part, N)
    for start in range(part * tokens_of_part, last, P):
        index_P = start + tl.arange(0, P)
        inside_P = index_P < last
        real_P = real_tokens(segment, row, index_P, N, MASKED) & inside_P
        query_PD = load_tile(query, query_n, index_P, real_P, D, D_PAD)
        grad_out_PD = load_tile(grad_out, grad_out_n, index_P, real_P, D, D_PAD)
        factor_PM = _factor(query_PD, mean_MD, present, score_scale, M_PAD, PRECISION)
        grad_score_PM = _grad_score(factor_PM, grad_out_PD, mixed_MD, MIX, MIX_PRECISION)
        grad_query_PD = tl.dot(grad_score_PM, mean_MD.to(MIX), input_precision=MIX_PRECISION) * scale
        grad_query_PD += load_share(
            grad_query_means + start_of_means, segment, row, index_P, real_P, tokens, N, M, D, D_PAD, MASKED
        )
        # At padding the gradient of the output was not read, so that this is 0.
        store_tile(grad_query, H * D, index_P, inside_P, grad_query_PD, D, D_PAD)
