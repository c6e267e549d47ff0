"""Nyström attention composed of PyTorch's operators: any device, every choice of landmarks and inverse.

Shapes: B rows, H heads, N positions, D head width, M landmarks.

F̃ and B̃ are never stored: F̃ (Z (B̃ V)) = attention(Q, K̃, Z · attention(Q̃, K, V)), two calls of
the fused kernel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nystromformer.attention.convolution import residual_convolution
from nystromformer.attention.landmarks import (
    RealTokensFirst,
    Segments,
    first_tokens,
    kmeans_centres,
    segment_means,
    uniform_samples,
)
from nystromformer.attention.neighbours import Blocks, attention_with_neighbours
from nystromformer.attention.options import NystromOptions
from nystromformer.attention.precision import at_least_float32, without_autocast
from nystromformer.attention.projections import mask_of, seen_keys, without_padding, zero_at_padding
from nystromformer.attention.pseudoinverse import exact_pinv, iterative_pinv
from nystromformer.attention.recording import is_recorded
from nystromformer.attention.softmax import softmax_attention


def composed_nystrom_attention(
    query_BHND: Tensor,
    key_BHND: Tensor,
    value_BHND: Tensor,
    options: NystromOptions,
    key_padding_mask_BN: Tensor | None = None,
    conv_weight_H1K1: Tensor | None = None,
    segments: Segments | None = None,
    kernels: bool = False,
) -> Tensor:
    """`nystrom_attention` on arguments known to be right; `kernels` as of `attention_with_neighbours`."""
    query_BHND, key_BHND, value_BHND = without_padding(query_BHND, key_BHND, value_BHND, key_padding_mask_BN)
    tensors = (query_BHND, key_BHND, value_BHND)
    if not is_recorded() and query_BHND.shape[2] <= options.most_exact:
        out = softmax_attention(*tensors, key_padding_mask=key_padding_mask_BN)
    elif options.neighbours is not None:
        out = _with_neighbours(*tensors, key_padding_mask_BN, options, options.neighbours, kernels)
    else:
        out = _through_landmarks(*tensors, key_padding_mask_BN, options, segments)
    if conv_weight_H1K1 is not None:
        out = out + _convolution(value_BHND, conv_weight_H1K1, kernels)
    return zero_at_padding(out, key_padding_mask_BN)


def _with_neighbours(
    query_BHND: Tensor,
    key_BHND: Tensor,
    value_BHND: Tensor,
    key_padding_mask_BN: Tensor | None,
    options: NystromOptions,
    neighbours: int,
    kernels: bool,
) -> Tensor:
    """See `neighbours.py`. Its blocks are cut from real tokens, which padding must not lie between."""
    (b, _, n, _), m = query_BHND.shape, options.num_landmarks
    query, key, value, first, segments = query_BHND, key_BHND, value_BHND, None, None
    if is_recorded():  # the record is run on other masks
        key_padding_mask_BN = mask_of(query_BHND, key_padding_mask_BN)
    if key_padding_mask_BN is not None:
        first = RealTokensFirst.of(key_padding_mask_BN, neighbours)
        query, key, value = (first.pack(x) for x in (query, key, value))
        n = query.shape[2]
    padding_BN = None if first is None else first.padding_BP
    if first is not None or options.landmarks != "segment_means":
        segments = Segments.of(mask_of(query, padding_BN), m)
    if kernels and options.pinv_iterations is not None:
        # Here, because it imports Triton, which only GPUs need.
        from nystromformer.attention.gpu.operator import inverse_on_gpu, segment_means_on_gpu

        query_BHMD, key_BHMD = segment_means_on_gpu(query, key, padding_BN, m).unbind()
        # It knows no absent landmarks, but only short rows have some, of which nothing uses Z.
        half = query.dtype != torch.float32
        inverse_BHMM = inverse_on_gpu(query_BHMD, key_BHMD, options.pinv_iterations, half)
    else:
        query_BHMD, key_BHMD = (landmarks_of(x, options, segments) for x in (query, key))
        inverse_BHMM = landmark_inverse(query_BHMD, key_BHMD, segments, options.pinv_iterations)
    count_B = torch.full((b,), n, device=query.device)
    if first is not None:
        count_B = n - first.padding_BP.sum(dim=1)
    blocks = Blocks.of(count_B, n, neighbours, m)
    arguments = (query, key, value, query_BHMD, key_BHMD, inverse_BHMM, options.salient_tokens, blocks)
    out = attention_with_neighbours(*arguments, kernels=kernels)
    if first is None or segments is None:
        return out
    if 2 * neighbours < m:
        # Rows of at most M tokens are exact although not all of their tokens are near.
        # In a record there may be fewer positions than M.
        more = m if is_recorded() else 0
        few = (F.pad(x, (0, 0, 0, more))[:, :, :m] for x in (query, key, value))
        few_padding_BM = F.pad(first.padding_BP, (0, more), value=True)[:, :m]
        exact = softmax_attention(*few, key_padding_mask=few_padding_BM)
        exact = F.pad(exact, (0, 0, 0, n))[:, :, :n]
        out = torch.where(segments.short_B[:, None, None, None], exact, out)
    return first.unpack(out)


def _convolution(value_BHND: Tensor, weight_H1K1: Tensor, kernels: bool) -> Tensor:
    if not kernels:
        return residual_convolution(value_BHND, weight_H1K1)
    # Here, because it imports Triton, which only GPUs need.
    from nystromformer.attention.gpu.operator import convolution_on_gpu

    return convolution_on_gpu(value_BHND, weight_H1K1)


def landmarks_of(x_BHND: Tensor, options: NystromOptions, segments: Segments | None) -> Tensor:
    """Q̃ or K̃, (B, H, M, D), in at least float32."""
    m = options.num_landmarks
    if segments is None or options.landmarks == "segment_means":
        return segment_means(x_BHND, m, segments)
    if options.landmarks == "uniform":
        chosen = uniform_samples(x_BHND, m, segments, options.landmark_seed).to(at_least_float32(x_BHND))
    else:
        chosen = kmeans_centres(x_BHND, m, segments)
    # In a short row every token is a landmark of its own, however the others are chosen.
    own = segment_means(x_BHND, m, segments)
    return torch.where(segments.short_B[:, None, None, None], own, chosen)


def landmark_attention(query_BHMD: Tensor, key_BHMD: Tensor, segments: Segments | None) -> Tensor:
    """Ã = softmax(Q̃ K̃ᵀ/√D), (B, H, M, M), in at least float32."""
    m, d = query_BHMD.shape[2:]
    with without_autocast(query_BHMD):
        scores_BHMM = (query_BHMD * d**-0.5) @ key_BHMD.transpose(-2, -1)  # ONNX has no `mT`
        if segments is None:
            return torch.softmax(scores_BHMM, dim=-1)
        absent_B11M = ~segments.present_BM[:, None, None]
        kernel_BHMM = torch.softmax(scores_BHMM.masked_fill(absent_B11M, float("-inf")), dim=-1)
        # A short row does not use its inverse; the identity keeps the iteration harmless there.
        identity_MM = torch.eye(m, device=kernel_BHMM.device, dtype=kernel_BHMM.dtype)
        return torch.where(segments.short_B[:, None, None, None], identity_MM, kernel_BHMM)


def landmark_inverse(
    query_BHMD: Tensor, key_BHMD: Tensor, segments: Segments | None, iterations: int | None
) -> Tensor:
    """Z ≈ Ã⁺, (B, H, M, M), in at least float32; the exact pseudoinverse for iterations of None."""
    kernel_BHMM = landmark_attention(query_BHMD, key_BHMD, segments)
    return exact_pinv(kernel_BHMM) if iterations is None else iterative_pinv(kernel_BHMM, iterations)


def _through_landmarks(
    query_BHND: Tensor,
    key_BHND: Tensor,
    value_BHND: Tensor,
    key_padding_mask_BN: Tensor | None,
    options: NystromOptions,
    segments: Segments | None,
) -> Tensor:
    """F̃ Z B̃ V by two fused attentions."""
    masked = key_padding_mask_BN is not None or is_recorded()  # segments serve a record's other lengths too
    if segments is None and (masked or options.landmarks != "segment_means"):
        segments = Segments.of(mask_of(query_BHND, key_padding_mask_BN), options.num_landmarks)
    query_BHMD, key_BHMD = (landmarks_of(x, options, segments) for x in (query_BHND, key_BHND))
    inverse_BHMM = landmark_inverse(query_BHMD, key_BHMD, segments, options.pinv_iterations)
    gathered_BHMD = F.scaled_dot_product_attention(  # B̃ V
        query_BHMD.to(query_BHND.dtype), key_BHND, value_BHND, attn_mask=seen_keys(key_padding_mask_BN)
    )
    with without_autocast(query_BHND):
        mixed_BHMD = inverse_BHMM @ gathered_BHMD.to(inverse_BHMM.dtype)  # Z B̃ V
    mixed_BHMD = mixed_BHMD.to(gathered_BHMD.dtype)
    present_B11M = None
    if segments is not None:
        # With one token a landmark, Z B̃ is the identity, and F̃ V is exact attention.
        tokens_BHMD = first_tokens(value_BHND, segments).to(mixed_BHMD.dtype)
        mixed_BHMD = torch.where(segments.short_B[:, None, None, None], tokens_BHMD, mixed_BHMD)
        present_B11M = segments.present_BM[:, None, None]
    return F.scaled_dot_product_attention(
        query_BHND, key_BHMD.to(key_BHND.dtype), mixed_BHMD, attn_mask=present_B11M
    )
