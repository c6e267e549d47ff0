"""Q̃ and K̃: means of the segments of each row's real tokens, in one launch.

Shapes: B rows, H heads, N positions, D head width, M landmarks; J segments of a program and T tokens of
each, read together.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nystromformer.attention.gpu.tiles import load_share, real_count, real_tokens, store_tile


@triton.jit
def means_kernel(
    query, query_b, query_h, query_n,
    key, key_b, key_h, key_n,
    means, segment, first, count,
    B, H, N,
    M: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
    MASKED: tl.constexpr, J: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Write float32 means, (2, B, H, M, D): those of the queries, then of the keys. 0 where absent.

    Grid: (B · H, M / J, 2), or 1 in the last place for those of the queries alone.
    """
    row_head = tl.program_id(0).to(tl.int64)
    row = row_head // H
    head = row_head % H
    which = tl.program_id(2)
    if which == 0:
        x = query + row * query_b + head * query_h
        stride = query_n
    else:
        x = key + row * key_b + head * key_h
        stride = key_n
    tokens = real_count(count, row, N, MASKED)
    size = tokens // M
    longer = tokens % M
    segment_J = tl.program_id(1) * J + tl.arange(0, J)
    size_J = size + (segment_J < longer).to(tl.int32)
    if MASKED:
        # A segment's positions reach to the next segment's first; padding among them is not read.
        present = tl.minimum(tokens, M)
        first_J = tl.load(first + row * M + segment_J, mask=segment_J < present, other=0)
        next_J = tl.load(first + row * M + segment_J + 1, mask=segment_J + 1 < present, other=N)
        span_J = tl.where(segment_J < present, next_J - first_J, 0)
    else:
        first_J = segment_J * size + tl.minimum(segment_J, longer)
        span_J = tl.where(segment_J < M, size_J, 0)
    width = tl.arange(0, D_PAD)
    sum_JD = tl.zeros([J, D_PAD], dtype=tl.float32)
    for start in range(0, tl.max(span_J, axis=0), T):
        place_T = start + tl.arange(0, T)
        index_JT = first_J[:, None] + place_T[None, :]
        real_JT = place_T[None, :] < span_J[:, None]
        if MASKED:
            real_JT = real_JT & (tl.load(segment + row * N + index_JT, mask=real_JT, other=-1) >= 0)
        x_JTD = tl.load(
            x + index_JT[:, :, None] * stride + width[None, None, :],
            mask=real_JT[:, :, None] & (width < D)[None, None, :],
            other=0.0,
        )
        sum_JD += tl.sum(x_JTD.to(tl.float32), axis=1)
    mean_JD = sum_JD / tl.maximum(size_J, 1).to(tl.float32)[:, None]
    start_of_head = means + ((which * B + row) * H + head) * M * D
    tl.store(
        start_of_head + segment_J[:, None] * D + width[None, :],
        mean_JD,
        mask=(segment_J < M)[:, None] & (width < D)[None, :],
    )


@triton.jit
def means_backward_kernel(
    grad_means, segment, count, grad_query, grad_key, B, H, N,
    M: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, MASKED: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Write the gradients of queries and keys, (B, N, H, D) in memory. Grid: (B · H, N / P, 2)."""
    row_head = tl.program_id(0).to(tl.int64)
    row = row_head // H
    which = tl.program_id(2)
    index_P = tl.program_id(1) * P + tl.arange(0, P)
    real_P = real_tokens(segment, row, index_P, N, MASKED)
    grad_means += (which * B * H + row_head) * M * D
    tokens = real_count(count, row, N, MASKED)
    grad_PD = load_share(grad_means, segment, row, index_P, real_P, tokens, N, M, D, D_PAD, MASKED)
    if which == 0:  # noqa: SIM108 (Triton knows no choice between pointers)
        grad = grad_query
    else:
        grad = grad_key
    store_tile(grad + (row * N * H + row_head % H) * D, H * D, index_P, index_P < N, grad_PD, D, D_PAD)
