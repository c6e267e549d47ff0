"""Nyström attention: softmax attention through m landmarks, in time and memory linear in n.

Shapes: B rows, H heads, N positions, D head width, M landmarks.

    Q̃, K̃ = landmarks of Q and K          landmarks.py
    F̃ = softmax(Q K̃ᵀ/√D)   N × M
    Ã = softmax(Q̃ K̃ᵀ/√D)   M × M          pseudoinverse.py: Z ≈ Ã⁺
    B̃ = softmax(Q̃ Kᵀ/√D)   M × N
    output = F̃ (Z (B̃ V)) + convolution(V)  convolution.py

and, where asked for, exact attention to a token's neighbours beside it (neighbours.py).

The paper's method (segment-means and the iterative inverse) runs by an operator written by hand: that of
`native.py` on a CPU, the Triton kernels of `gpu/` on an NVIDIA GPU. Everything else, other devices and other
options, is composed of PyTorch's operators in `composed.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nystromformer.attention import build
from nystromformer.attention.composed import composed_nystrom_attention
from nystromformer.attention.convolution import check_weight
from nystromformer.attention.gpu.support import why_not_neighbours_on_gpu, why_not_on_gpu
from nystromformer.attention.landmarks import Segments
from nystromformer.attention.mechanism import Mechanism, exact_flops
from nystromformer.attention.native import nystrom_attention_on_cpu, why_not_on_cpu
from nystromformer.attention.options import NystromOptions
from nystromformer.attention.projections import check_projections
from nystromformer.attention.recording import is_recorded
from nystromformer.settings.schema import result

IMPLEMENTATIONS = ("auto", "operator", "composed")
DEFAULT_IMPLEMENTATION = os.environ.get("NYSTROMFORMER_ATTENTION") or "auto"
"""For calls that name none, a whole model's too: one of IMPLEMENTATIONS."""


@dataclass
class Settings:
    num_landmarks: int = result(64, at_least=1)
    """Landmarks of each head; `nystrom` only."""
    landmarks: str = result("segment_means", choices=("segment_means", "uniform", "kmeans"))
    """How landmarks are chosen: `segment_means`, `uniform` (random tokens) or `kmeans`; `nystrom` only."""
    pinv_iterations: int | None = result(6, at_least=1)
    """Iterations of the pseudoinverse, empty for the exact one; `nystrom` only."""
    neighbours: int | None = result(None, at_least=1)
    """Tokens of a block: each attends exactly to its own block, the two beside it and the salient tokens, and
    through landmarks to the rest; empty for landmarks alone, the paper's attention; `nystrom` only."""
    salient_tokens: int = result(1, at_least=1)
    """With neighbours: tokens that all attend to exactly, of each row and head: the first, and the others
    that the landmarks attend to most."""


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
    neighbours: int | None = None,
    salient_tokens: int = 1,
    implementation: str | None = None,
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
        neighbours: None for the paper's attention. w: each token attends exactly to its block of w real
            tokens, the two blocks beside it and the row's first token, and through the landmarks to what
            is far; see `neighbours.py`. A row of at most 2 w real tokens is then exact too.
        salient_tokens: with neighbours, how many tokens of each row and head every token attends to exactly:
            the first, and the others that the landmarks attend to most; see `neighbours.py`.
        implementation: `operator` for the device's hand-written one, `composed` for that of PyTorch's
            operators, `auto` for the former where it can run. None takes the environment variable
            NYSTROMFORMER_ATTENTION as it was at the import, and where that is not set `auto`.

    Returns:
        (B, H, N, D), 0 at padded positions.

    Raises:
        ValueError: a shape, the mask's dtype or an option is impossible.
    """
    options = NystromOptions(
        num_landmarks, pinv_iterations, landmarks, landmark_seed, neighbours, salient_tokens
    )
    return attend(query, key, value, options, key_padding_mask, conv_weight, segments, implementation)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    options: NystromOptions,
    key_padding_mask: Tensor | None = None,
    conv_weight: Tensor | None = None,
    segments: Segments | None = None,
    implementation: str | None = None,
) -> Tensor:
    """`nystrom_attention` with its options as one."""
    check_projections(query, key, value, key_padding_mask)
    if conv_weight is not None:
        check_weight(conv_weight, query.shape[1])
    arguments = (query, key, value, options, key_padding_mask, conv_weight)
    implementation = _known(implementation or DEFAULT_IMPLEMENTATION)
    if implementation != "composed":
        obstacle = _why_no_operator(query, options)
        if obstacle is None:
            return _operator(query, options)(*arguments)
        if implementation == "operator":
            raise ValueError(f"implementation='operator' cannot compute this: {obstacle}; use 'composed'")
    return composed_nystrom_attention(*arguments, segments)


def computed_by(
    query: Tensor, options: NystromOptions, implementation: str | None = None, *, reason: bool = False
) -> str:
    """What computes such calls of `nystrom_attention`, whose last bits differ from one to the other.

    Args:
        query: (B, H, N, D), read for its shape, device and dtype alone.
        reason: say for people why, where it is not the device's own operator.
    """
    obstacle = _why_no_operator(query, options)
    if _known(implementation or DEFAULT_IMPLEMENTATION) == "composed" or obstacle:
        found = "composed of PyTorch's operators"
    elif query.device.type == "cpu":
        found = f"compiled kernel {build.fingerprint()}"
    else:
        found = f"Triton {version('triton')}"
    return f"{found}: {obstacle}" if reason and obstacle else found


def _why_no_operator(query: Tensor, options: NystromOptions) -> str | None:
    """A clause on what the device's own operator cannot do; None where it can."""
    m, w = options.num_landmarks, options.neighbours
    if options.pinv_iterations is None:
        return "it has the iterative inverse only"
    if options.landmarks != "segment_means":
        return "its landmarks are segment-means only"
    if torch.onnx.is_in_onnx_export():
        return "ONNX has no such operator"
    if query.device.type == "cpu":
        return why_not_on_cpu(query.dtype, query.shape[-1], m, w)
    if w is not None:
        return why_not_neighbours_on_gpu(query, m, w, options.salient_tokens)
    return why_not_on_gpu(query, m)


def _operator(query: Tensor, options: NystromOptions) -> Callable[..., Tensor]:
    """The device's own, in the place of `composed_nystrom_attention`."""
    if query.device.type == "cpu":
        return nystrom_attention_on_cpu
    if options.neighbours is not None:
        return partial(composed_nystrom_attention, kernels=True)
    # Here, because it imports Triton, which only GPUs need.
    from nystromformer.attention.gpu.operator import nystrom_attention_on_gpu

    return nystrom_attention_on_gpu


def _known(implementation: str) -> str:
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation={implementation!r} is unknown: use one of {', '.join(IMPLEMENTATIONS)}, "
            "also in the environment variable NYSTROMFORMER_ATTENTION"
        )
    return implementation


def near_in_words(neighbours: int | None, salient_tokens: int) -> str:
    """What stands behind `… landmarks` where attention has exact neighbours."""
    if neighbours is None:
        return ""
    salient = "" if salient_tokens == 1 else f" and {salient_tokens} salient tokens"
    return f" and exact neighbours in blocks of {neighbours}{salient}"


def options_of(config: Any) -> NystromOptions:
    """Those of a `NystromformerConfig`."""
    return NystromOptions(**{one.name: getattr(config, one.name) for one in fields(Settings)})


class NystromAttention(Mechanism):
    """`nystrom_attention` with its options. It has no parameters: the layer holds the convolution's."""

    convolves = True
    in_transformers = True

    def __init__(self, options: NystromOptions) -> None:
        super().__init__()
        self.options = options

    @classmethod
    def of(cls, config: Any) -> NystromAttention:
        return cls(options_of(config))

    def approximation(self, tokens: int) -> dict[str, Any]:
        return asdict(self.options)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        key_padding_mask: Tensor | None = None,
        conv_weight: Tensor | None = None,
        shared: Segments | None = None,
    ) -> Tensor:
        arguments = (query, key, value, self.options, key_padding_mask, conv_weight, shared)
        return attend(*arguments, self.implementation)

    @staticmethod
    def flops(config: Any, tokens: NDArray[np.float64]) -> NDArray[np.float64]:
        """With h heads, m landmarks and p iterations:

              8 n m d       F̃, B̃ and the products with them
            + 4 m² d        Ã, and Z (B̃ V)
            + 8 p h m³      four products of m × m matrices an iteration
                            (the exact inverse, which is no product, counts 0)

        with neighbours w also

              4 n (3 w + g) d     the near scores and values, g salient tokens
            + 2 (n/w − 1) m² d    Z times each block's far part of B̃ V

        A row with at most m tokens, or 2 w, takes exact attention.
        """
        d, m, w = config.hidden_size, config.num_landmarks, config.neighbours
        iterations = config.pinv_iterations or 0
        found = 8 * tokens * m * d + 4 * m**2 * d + 8 * iterations * config.num_attention_heads * m**3
        if w is not None:
            near = np.minimum(tokens, 3 * w + config.salient_tokens)
            found += 4 * tokens * near * d + 2 * (tokens / w - 1) * m**2 * d
        return np.where(tokens <= options_of(config).most_exact, exact_flops(config, tokens), found)

    def is_exact(self, tokens: int) -> bool:
        return tokens <= self.options.most_exact

    def shared(self, key_padding_mask: Tensor | None) -> Segments | None:
        """The segments; None where nothing needs them."""
        m = self.options.num_landmarks
        if key_padding_mask is None or self.options.neighbours is not None:
            return None
        if key_padding_mask.device.type == "cpu":  # where a kernel computes rows one by one
            return None
        if not is_recorded() and key_padding_mask.shape[1] <= m:
            return None
        return Segments.of(key_padding_mask, m)

    def described(self, query_BHND: Tensor) -> str:
        return computed_by(query_BHND, self.options, self.implementation, reason=True)

    def extra_repr(self) -> str:
        chosen = self.options
        near = near_in_words(chosen.neighbours, chosen.salient_tokens)
        return (
            f"Nyström attention with {chosen.num_landmarks} landmarks ({chosen.landmarks}){near}; exact for "
            f"rows of at most {chosen.most_exact} tokens"
        )
