"""Nyström attention: softmax attention through m landmarks, in time and memory linear in n.

Shapes: B rows, H heads, N positions, D head width, M landmarks.

    Q̃, K̃ = landmarks of Q and K          segment_means
    F̃ = softmax(Q K̃ᵀ/√D)   N × M
    Ã = softmax(Q̃ K̃ᵀ/√D)   M × M          iterative_pinv: Z ≈ Ã⁺
    B̃ = softmax(Q̃ Kᵀ/√D)   M × N
    output = F̃ (Z (B̃ V)) + convolution(V)

F̃ and B̃ are never stored: F̃ (Z (B̃ V)) = attention(Q, K̃, Z · attention(Q̃, K, V)), two calls of
the fused kernel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nystromformer.attention.convolution import residual_convolution
from nystromformer.attention.landmarks import Segments, first_tokens, segment_means
from nystromformer.attention.pseudoinverse import iterative_pinv
from nystromformer.attention.softmax import softmax_attention


def nystrom_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    num_landmarks: int = 64,
    key_padding_mask: Tensor | None = None,
    pinv_iterations: int = 6,
    landmarks: str = "segment_means",
    conv_weight: Tensor | None = None,
    segments: Segments | None = None,
) -> Tensor:
    """Nyström approximation of softmax attention (paper, equations 7 to 13 and algorithm 1).

    A row's output depends on that row's real tokens only: not on its batch mates, not on the amount
    or content of padding. A row with at most `num_landmarks` real tokens gets exact attention, which
    the method converges to when every token is a landmark (supplement, lemma 2).

    Args:
        query, key, value: (B, H, N, D), floating point, on one device.
        num_landmarks: M, any positive number; it need not divide N.
        key_padding_mask: (B, N) bool, True at padding, anywhere in the row.
        pinv_iterations: steps of the iterative inverse, which runs in at least float32.
        landmarks: how landmarks are chosen; `segment_means`.
        conv_weight: (H, 1, K, 1), K odd: kernel of the residual convolution. Distances are counted in
            positions; a padded position counts as a zero value. None for no residual.
        segments: `Segments.of(key_padding_mask, num_landmarks)`, where a caller has it already.

    Returns:
        (B, H, N, D); what stands at padded positions is finite and means nothing.

    Raises:
        ValueError: a shape, the mask's dtype or an option is impossible.
    """
    _check(query, key, value, num_landmarks, key_padding_mask, pinv_iterations, landmarks, conv_weight)
    if key_padding_mask is not None:
        # Whatever stands in the padding, infinities and NaN included, must not reach a product.
        pad_B1N1 = key_padding_mask[:, None, :, None]
        query, key, value = (x.masked_fill(pad_B1N1, 0) for x in (query, key, value))
    if query.shape[2] <= num_landmarks:
        out = softmax_attention(query, key, value, key_padding_mask=key_padding_mask)
    else:
        if key_padding_mask is not None and segments is None:
            segments = Segments.of(key_padding_mask, num_landmarks)
        out = _through_landmarks(
            query, key, value, num_landmarks, key_padding_mask, pinv_iterations, segments
        )
    if conv_weight is not None:
        out = out + residual_convolution(value, conv_weight)
    return out


def _through_landmarks(
    query_BHND: Tensor,
    key_BHND: Tensor,
    value_BHND: Tensor,
    num_landmarks: int,
    key_padding_mask_BN: Tensor | None,
    pinv_iterations: int,
    segments: Segments | None,
) -> Tensor:
    scale = query_BHND.shape[-1] ** -0.5
    query_BHMD = segment_means(query_BHND, num_landmarks, segments)
    key_BHMD = segment_means(key_BHND, num_landmarks, segments)
    query_landmarks = query_BHMD.to(query_BHND.dtype)
    key_landmarks = key_BHMD.to(key_BHND.dtype)
    with torch.autocast(query_BHND.device.type, enabled=False):
        scores_BHMM = (query_BHMD * scale) @ key_BHMD.mT
        if segments is not None:
            absent_B11M = ~segments.present_BM[:, None, None]
            scores_BHMM = scores_BHMM.masked_fill(absent_B11M, float("-inf"))
        kernel_BHMM = torch.softmax(scores_BHMM, dim=-1)  # Ã
        if segments is not None:
            # A short row does not use its inverse; the identity keeps the iteration harmless there.
            short_B111 = segments.short_B[:, None, None, None]
            identity = torch.eye(num_landmarks, device=kernel_BHMM.device, dtype=kernel_BHMM.dtype)
            kernel_BHMM = torch.where(short_B111, identity, kernel_BHMM)
        inverse_BHMM = iterative_pinv(kernel_BHMM, pinv_iterations)  # Z

    gathered_BHMD = softmax_attention_over(query_landmarks, key_BHND, value_BHND, key_padding_mask_BN)
    with torch.autocast(query_BHND.device.type, enabled=False):
        mixed_BHMD = inverse_BHMM @ gathered_BHMD.to(inverse_BHMM.dtype)  # Z (B̃ V)
    mixed_BHMD = mixed_BHMD.to(gathered_BHMD.dtype)
    present_B11M = None
    if segments is not None:
        # With one token a landmark, Z B̃ is the identity, and F̃ V is exact attention.
        tokens_BHMD = first_tokens(value_BHND, segments).to(mixed_BHMD.dtype)
        mixed_BHMD = torch.where(short_B111, tokens_BHMD, mixed_BHMD)
        present_B11M = segments.present_BM[:, None, None]
    return F.scaled_dot_product_attention(query_BHND, key_landmarks, mixed_BHMD, attn_mask=present_B11M)


def softmax_attention_over(
    query_BHMD: Tensor, key_BHND: Tensor, value_BHND: Tensor, key_padding_mask_BN: Tensor | None
) -> Tensor:
    """B̃ V: every landmark query attends to the real tokens, (B, H, M, D)."""
    if key_padding_mask_BN is None:
        return F.scaled_dot_product_attention(query_BHMD, key_BHND, value_BHND)
    # A row of padding alone attends to everything, all zero by now, rather than to nothing.
    empty_B1 = key_padding_mask_BN.all(dim=1, keepdim=True)
    real_B11N = (~key_padding_mask_BN | empty_B1)[:, None, None]
    return F.scaled_dot_product_attention(query_BHMD, key_BHND, value_BHND, attn_mask=real_B11N)


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_landmarks: int,
    key_padding_mask: Tensor | None,
    pinv_iterations: int,
    landmarks: str,
    conv_weight: Tensor | None,
) -> None:
    if query.dim() != 4 or not query.shape == key.shape == value.shape:
        raise ValueError(
            "query, key and value must share one shape (batch, heads, tokens, width), got "
            f"{tuple(query.shape)}, {tuple(key.shape)}, {tuple(value.shape)}"
        )
    b, h, n, _ = query.shape
    if num_landmarks < 1:
        raise ValueError(f"num_landmarks={num_landmarks}: use at least 1")
    if pinv_iterations < 1:
        raise ValueError(f"pinv_iterations={pinv_iterations}: use at least 1")
    if landmarks != "segment_means":
        raise ValueError(f"landmarks={landmarks!r} is unknown: use 'segment_means'")
    if key_padding_mask is not None and (
        key_padding_mask.dtype != torch.bool or key_padding_mask.shape != (b, n)
    ):
        raise ValueError(
            f"key_padding_mask must be bool of shape {(b, n)}, True at padding, got "
            f"{key_padding_mask.dtype} of shape {tuple(key_padding_mask.shape)}"
        )
    if conv_weight is not None and (
        conv_weight.dim() != 4
        or conv_weight.shape[:2] != (h, 1)
        or conv_weight.shape[3] != 1
        or conv_weight.shape[2] % 2 == 0
    ):
        raise ValueError(
            f"conv_weight must have shape ({h}, 1, odd width, 1), got {tuple(conv_weight.shape)}"
        )
