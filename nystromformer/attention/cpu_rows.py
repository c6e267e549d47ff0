"""Nyström attention on a CPU row by row, out of PyTorch's operators, with a backward pass by hand.

Shapes: B rows, H heads, N positions, D head width, M landmarks; G some heads of one row and n the
row's real tokens.

Each row is computed alone, at its own length, without its padding: so its output cannot depend on
batch mates or on padding, and padding costs nothing. Within a row the heads are taken a few at a time,
so that the n × M factors of those heads stay in the cache; they are computed again in the backward
pass, for which only the inputs and tensors of M rows are kept.

What `kernel/nystrom.cpp` does in one pass over the tokens: its reference, and what runs where it cannot.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from nystromformer.attention.convolution import (
    add_convolution,
    add_convolution_backward,
    banded,
    sum_of_diagonals,
)
from nystromformer.attention.pseudoinverse import iterate, iterate_backward

CACHED_ENTRIES = 2**20
"""Entries of a factor, heads × n × M, that one pass over some heads should stay below: 4 MB."""


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None,
    conv_weight_HK: Tensor | None,
    num_landmarks: int,
    iterations: int,
    out_BHND: Tensor,
    kept: Sequence[Tensor],
) -> None:
    """Write the output at real tokens, and of rows of more than M tokens what `backward` reads.

    Args:
        query, key, value: (B, H, N, D), any floating dtype.
        conv_weight_HK: in the dtype that is computed in.
        kept: as `native.forward` has them, but the third is Z and the fifth is not used.
    """
    m, dtype = num_landmarks, kept[0].dtype
    band_HTW = None if conv_weight_HK is None else banded(conv_weight_HK)
    with torch.autocast("cpu", enabled=False):
        for row, heads in _passes(query, key_padding_mask, m):
            q_GnD, k_GnD, v_GnD = (row.read(x, heads, dtype) for x in (query, key, value))
            out_GnD = row.room(out_BHND, heads, dtype)
            if row.size <= m:
                _exact_forward_pass(out_GnD, q_GnD, k_GnD, v_GnD)
            else:
                factors = _forward_pass(out_GnD, q_GnD, k_GnD, v_GnD, m, iterations)
                for kept_BHMX, factor_GMX in zip(kept, factors, strict=False):
                    kept_BHMX[row.index, heads] = factor_GMX
            if band_HTW is not None:
                # Distances are counted in positions: padding between tokens is a zero value.
                out_GND = row.spread(out_GnD)
                add_convolution(out_GND, row.spread(v_GnD), band_HTW[heads])
                out_GnD = row.gather(out_GND)
            row.write(out_BHND, heads, out_GnD)


def backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None,
    conv_weight_HK: Tensor | None,
    num_landmarks: int,
    iterations: int,
    kept: Sequence[Tensor],
    grads: Sequence[Tensor],
) -> Tensor | None:
    """Write the gradients of queries, keys and values; returns the convolution's, (H, K), or None."""
    m, dtype = num_landmarks, kept[0].dtype
    band_HTW = None if conv_weight_HK is None else banded(conv_weight_HK)
    grad_band_HTW = None if band_HTW is None else torch.zeros_like(band_HTW)
    with torch.autocast("cpu", enabled=False):
        for row, heads in _passes(query, key_padding_mask, m):
            grad_out_GnD = row.read(grad_out, heads, dtype)
            q_GnD, k_GnD, v_GnD = (row.read(x, heads, dtype) for x in (query, key, value))
            new_GnD = [row.room(grad, heads, dtype) for grad in grads]
            if row.size <= m:
                _exact_backward_pass(new_GnD, grad_out_GnD, q_GnD, k_GnD, v_GnD)
            else:
                factors = tuple(x_BHMX[row.index, heads] for x_BHMX in kept[:4])
                _backward_pass(new_GnD, grad_out_GnD, q_GnD, k_GnD, v_GnD, factors, iterations)
            if band_HTW is not None and grad_band_HTW is not None:
                grad_value_GND = row.spread(new_GnD[2])
                add_convolution_backward(
                    grad_value_GND,
                    grad_band_HTW[heads],
                    row.spread(grad_out_GnD),
                    row.spread(v_GnD),
                    band_HTW[heads],
                )
                new_GnD[2] = row.gather(grad_value_GND)
            for grad_BHND, grad_GnD in zip(grads, new_GnD, strict=True):
                row.write(grad_BHND, heads, grad_GnD)
    return None if grad_band_HTW is None else sum_of_diagonals(grad_band_HTW)


# --- one pass: some heads of one row ------------------------------------------------------------------


def _forward_pass(
    out_GnD: Tensor,
    query_GnD: Tensor,
    key_GnD: Tensor,
    value_GnD: Tensor,
    num_landmarks: int,
    iterations: int,
) -> tuple[Tensor, ...]:
    """Write F̃ Z B̃ V to `out`; returns what the backward pass needs: Q̃, K̃, Z and B̃ V."""
    scale = query_GnD.shape[-1] ** -0.5
    query_GMD = row_segment_means(query_GnD, num_landmarks)  # Q̃
    key_GMD = row_segment_means(key_GnD, num_landmarks)  # K̃
    scaled_query_GMD, scaled_key_GMD = query_GMD * scale, key_GMD * scale
    inverse_GMM = iterate(_attention_matrix(scaled_query_GMD, key_GMD), iterations)  # Z
    gathered_GMD = torch.bmm(_attention_matrix(scaled_query_GMD, key_GnD), value_GnD)  # B̃ V
    mixed_GMD = torch.bmm(inverse_GMM, gathered_GMD)  # Z B̃ V
    torch.bmm(_attention_matrix(query_GnD, scaled_key_GMD), mixed_GMD, out=out_GnD)  # F̃ Z B̃ V
    return query_GMD, key_GMD, inverse_GMM, gathered_GMD


def _backward_pass(
    grads_GnD: Sequence[Tensor],
    grad_out_GnD: Tensor,
    query_GnD: Tensor,
    key_GnD: Tensor,
    value_GnD: Tensor,
    factors: tuple[Tensor, ...],
    iterations: int,
) -> None:
    """Write the gradients of the queries, keys and values: `_forward_pass`, whose result `factors` is, read
    from its end."""
    query_GMD, key_GMD, inverse_GMM, gathered_GMD = factors
    grad_query_GnD, grad_key_GnD, grad_value_GnD = grads_GnD
    scale = query_GnD.shape[-1] ** -0.5
    scaled_query_GMD, scaled_key_GMD = query_GMD * scale, key_GMD * scale
    # out = F̃ X, with X = Z Y and Y = B̃ V
    mixed_GMD = torch.bmm(inverse_GMM, gathered_GMD)
    factor_GnM = _attention_matrix(query_GnD, scaled_key_GMD)  # F̃
    grad_mixed_GMD = torch.bmm(factor_GnM.mT, grad_out_GnD)
    grad_scores_GnM = _softmax_backward(torch.bmm(grad_out_GnD, mixed_GMD.mT), factor_GnM)
    torch.bmm(grad_scores_GnM, scaled_key_GMD, out=grad_query_GnD)
    grad_key_GMD = torch.bmm(grad_scores_GnM.mT, query_GnD)  # of K̃ · scale
    # X = Z Y
    grad_inverse_GMM = torch.bmm(grad_mixed_GMD, gathered_GMD.mT)
    grad_gathered_GMD = torch.bmm(inverse_GMM.mT, grad_mixed_GMD)
    # Z ≈ Ã⁺
    kernel_GMM = _attention_matrix(scaled_query_GMD, key_GMD)  # Ã
    grad_kernel_GMM = iterate_backward(grad_inverse_GMM, kernel_GMM, iterations)
    grad_scores_GMM = _softmax_backward(grad_kernel_GMM, kernel_GMM)
    grad_query_GMD = torch.bmm(grad_scores_GMM, key_GMD)  # of Q̃ · scale
    grad_key_GMD.baddbmm_(grad_scores_GMM.mT, query_GMD)
    # Y = B̃ V
    factor_GMn = _attention_matrix(scaled_query_GMD, key_GnD)  # B̃
    torch.bmm(factor_GMn.mT, grad_gathered_GMD, out=grad_value_GnD)
    grad_scores_GMn = _softmax_backward(torch.bmm(grad_gathered_GMD, value_GnD.mT), factor_GMn)
    grad_query_GMD.baddbmm_(grad_scores_GMn, key_GnD)
    torch.bmm(grad_scores_GMn.mT, scaled_query_GMD, out=grad_key_GnD)
    # Q̃ and K̃ are means
    _add_to_segments(grad_query_GnD, grad_query_GMD.mul_(scale))
    _add_to_segments(grad_key_GnD, grad_key_GMD.mul_(scale))


def _exact_forward_pass(out_GnD: Tensor, query_GnD: Tensor, key_GnD: Tensor, value_GnD: Tensor) -> None:
    """Exact attention, for a row of at most M tokens."""
    scaled_query_GnD = query_GnD * query_GnD.shape[-1] ** -0.5
    torch.bmm(_attention_matrix(scaled_query_GnD, key_GnD), value_GnD, out=out_GnD)


def _exact_backward_pass(
    grads_GnD: Sequence[Tensor], grad_out_GnD: Tensor, query_GnD: Tensor, key_GnD: Tensor, value_GnD: Tensor
) -> None:
    grad_query_GnD, grad_key_GnD, grad_value_GnD = grads_GnD
    scale = query_GnD.shape[-1] ** -0.5
    scaled_query_GnD = query_GnD * scale
    matrix_Gnn = _attention_matrix(scaled_query_GnD, key_GnD)
    torch.bmm(matrix_Gnn.mT, grad_out_GnD, out=grad_value_GnD)
    grad_scores_Gnn = _softmax_backward(torch.bmm(grad_out_GnD, value_GnD.mT), matrix_Gnn)
    torch.bmm(grad_scores_Gnn, key_GnD, out=grad_query_GnD)
    grad_query_GnD *= scale
    torch.bmm(grad_scores_Gnn.mT, scaled_query_GnD, out=grad_key_GnD)


def _attention_matrix(scaled_query: Tensor, key: Tensor) -> Tensor:
    """softmax(Q Kᵀ), written over the scores."""
    scores = torch.bmm(scaled_query, key.mT)
    return torch.softmax(scores, dim=-1, out=scores)


def _softmax_backward(grad_matrix: Tensor, matrix: Tensor) -> Tensor:
    """Gradient of the scores from that of their softmax, written over the latter."""
    return torch.ops.aten._softmax_backward_data.out(
        grad_matrix, matrix, -1, matrix.dtype, grad_input=grad_matrix
    )


def row_segment_means(x_GnD: Tensor, num_landmarks: int) -> Tensor:
    """Means of M segments of n ≥ M tokens, (G, M, D); the first n mod M are longer by one token."""
    return torch.cat([segments.mean(dim=2) for segments in _segments(x_GnD, num_landmarks)], dim=1)


def _add_to_segments(x_GnD: Tensor, grad_means_GMD: Tensor) -> None:
    """The gradient of `row_segment_means`, added to x."""
    start, m = 0, grad_means_GMD.shape[1]
    for segments_GMSD in _segments(x_GnD, m):
        _, count, size, _ = segments_GMSD.shape
        grad_GMD = grad_means_GMD[:, start : start + count]
        segments_GMSD.add_(grad_GMD[:, :, None], alpha=1 / size)
        start += count


def _segments(x_GnD: Tensor, m: int) -> Iterator[Tensor]:
    """Views (G, count, size, D): first the longer segments, if any, then the others."""
    size, longer = divmod(x_GnD.shape[1], m)
    border = longer * (size + 1)
    if longer:
        yield x_GnD[:, :border].unflatten(1, (longer, size + 1))
    yield x_GnD[:, border:].unflatten(1, (m - longer, size))


# --- the rows of a batch ------------------------------------------------------------------------------


class _Row:
    """Which positions of a row are real tokens, and how to read and write them."""

    def __init__(self, index: int, real_N: Tensor | None, n: int) -> None:
        self.index = index
        self.start, self.length = 0, n
        """The positions from the first to the last real token."""
        self.tokens_n: Tensor | None = None
        """The real tokens' positions, where padding lies between them."""
        self.size = n
        """How many real tokens."""
        if real_N is not None:
            positions_n = real_N.nonzero()[:, 0]
            self.size = len(positions_n)
            self.start = int(positions_n[0]) if self.size else 0
            self.length = int(positions_n[-1]) + 1 - self.start if self.size else 0
            if self.length != self.size:
                self.tokens_n = positions_n

    def span(self, x_BHND: Tensor, heads: slice) -> Tensor:
        """(G, positions from the first to the last real token, D), a view."""
        return x_BHND[self.index, heads, self.start : self.start + self.length]

    def read(self, x_BHND: Tensor, heads: slice, dtype: torch.dtype) -> Tensor:
        """(G, n, D), a view where no token has to be skipped or converted."""
        if self.tokens_n is None:
            return self.span(x_BHND, heads).to(dtype)
        return x_BHND[self.index, heads].index_select(1, self.tokens_n).to(dtype)

    def room(self, x_BHND: Tensor, heads: slice, dtype: torch.dtype) -> Tensor:
        """(G, n, D) to compute into: x itself where it can be."""
        span_GND = self.span(x_BHND, heads)
        if self.tokens_n is None and x_BHND.dtype == dtype:
            return span_GND
        return torch.empty(len(span_GND), self.size, x_BHND.shape[3], dtype=dtype, device=x_BHND.device)

    def write(self, x_BHND: Tensor, heads: slice, new_GnD: Tensor) -> None:
        """Put what was computed in `room` into x."""
        if self.tokens_n is not None:
            x_BHND[self.index, heads].index_copy_(1, self.tokens_n, new_GnD.to(x_BHND.dtype))
        elif x_BHND.dtype != new_GnD.dtype:
            self.span(x_BHND, heads).copy_(new_GnD)

    def spread(self, x_GnD: Tensor) -> Tensor:
        """From the real tokens to the positions of the span, zeros between: (G, length, D)."""
        if self.tokens_n is None:
            return x_GnD
        spread_GND = x_GnD.new_zeros(x_GnD.shape[0], self.length, x_GnD.shape[2])
        return spread_GND.index_copy_(1, self.tokens_n - self.start, x_GnD)

    def gather(self, x_GND: Tensor) -> Tensor:
        """The inverse of `spread`."""
        return x_GND if self.tokens_n is None else x_GND.index_select(1, self.tokens_n - self.start)


def _passes(x_BHND: Tensor, mask_BN: Tensor | None, num_landmarks: int) -> Iterator[tuple[_Row, slice]]:
    """Every row with real tokens, a few heads at a time."""
    b, h, n, _ = x_BHND.shape
    sizes = [n] * b if mask_BN is None else (n - mask_BN.sum(dim=1)).tolist()
    for index, size in enumerate(sizes):
        if size:
            row = _Row(index, None if mask_BN is None else ~mask_BN[index], n)
            group = max(1, min(h, CACHED_ENTRIES // (row.size * num_landmarks)))
            for first in range(0, h, group):
                yield row, slice(first, min(first + group, h))
