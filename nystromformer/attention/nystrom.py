"""Nyström attention: softmax attention through m landmarks, in time and memory linear in n.

Shapes: B rows, H heads, N positions, D head width, M landmarks.

    Q̃, K̃ = landmarks of Q and K          landmarks.py
    F̃ = softmax(Q K̃ᵀ/√D)   N × M
    Ã = softmax(Q̃ K̃ᵀ/√D)   M × M          pseudoinverse.py: Z ≈ Ã⁺
    B̃ = softmax(Q̃ Kᵀ/√D)   M × N
    output = F̃ (Z (B̃ V)) + convolution(V)  convolution.py

The paper's method (segment-means and the iterative inverse) runs on a CPU by the operator of `cpu.py`.
Everything else, other devices and other choices, is composed of PyTorch's operators in `composed.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nystromformer.attention.composed import composed_nystrom_attention
from nystromformer.attention.convolution import check_weight
from nystromformer.attention.cpu import nystrom_attention_on_cpu
from nystromformer.attention.landmarks import Segments
from nystromformer.attention.projections import check_projections

LANDMARKS = ("segment_means", "uniform", "kmeans")


def nystrom_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    num_landmarks: int = 64,
    key_padding_mask: Tensor | None = None,
    pinv_iterations: int | None = 6,
    landmarks: str = "segment_means",
    landmark_seed: int = 0,
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
        pinv_iterations: steps of the iterative inverse, which runs in at least float32; None for the
            exact pseudoinverse by singular values.
        landmarks: how landmarks are chosen: `segment_means`, `uniform` (random tokens) or `kmeans`.
        landmark_seed: which tokens `uniform` draws.
        conv_weight: (H, 1, K, 1), K odd: kernel of the residual convolution. Distances are counted in
            positions; a padded position counts as a zero value. None for no residual.
        segments: `Segments.of(key_padding_mask, num_landmarks)`, where a caller has it already.

    Returns:
        (B, H, N, D), 0 at padded positions.

    Raises:
        ValueError: a shape, the mask's dtype or an option is impossible.
    """
    _check(query, key, value, num_landmarks, key_padding_mask, pinv_iterations, landmarks, conv_weight)
    if pinv_iterations is not None and landmarks == "segment_means" and _has_operator(query):
        return nystrom_attention_on_cpu(
            query, key, value, key_padding_mask, conv_weight, num_landmarks, pinv_iterations
        )
    return composed_nystrom_attention(
        query,
        key,
        value,
        num_landmarks,
        key_padding_mask,
        pinv_iterations,
        landmarks,
        landmark_seed,
        conv_weight,
        segments,
    )


def _has_operator(query: Tensor) -> bool:
    return query.device.type == "cpu" and not torch.onnx.is_in_onnx_export()


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_landmarks: int,
    key_padding_mask: Tensor | None,
    pinv_iterations: int | None,
    landmarks: str,
    conv_weight: Tensor | None,
) -> None:
    check_projections(query, key, value, key_padding_mask)
    if num_landmarks < 1:
        raise ValueError(f"num_landmarks={num_landmarks}: use at least 1")
    if pinv_iterations is not None and pinv_iterations < 1:
        raise ValueError(f"pinv_iterations={pinv_iterations}: use at least 1, or None for the exact inverse")
    if landmarks not in LANDMARKS:
        raise ValueError(f"landmarks={landmarks!r} is unknown: use one of {', '.join(LANDMARKS)}")
    if conv_weight is not None:
        check_weight(conv_weight, query.shape[1])
