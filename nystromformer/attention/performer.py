"""Performer: softmax attention by positive random features, FAVOR+ (Choromanski et al. 2020, 2009.14794).

Shapes: B rows, H heads, N positions, D head width, R random features.

    φ(x) = (exp(Ω x − |x|²/2 − stabiliser) + ε) / √R,  x = q or k over D^¼
    output = φ(Q) (φ(K)ᵀ V) / (φ(Q) φ(K)ᵀ 1)

The expectation of φ(q)ᵀφ(k) is exp(qᵀk/√D) up to stabilisers and ε: the stabiliser of a query is its own
largest exponent, that of the keys the largest of a row's head; both cancel in the quotient up to ε and
are constants to the gradient, as in the authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nystromformer.attention.mechanism import Mechanism
from nystromformer.attention.precision import at_least_float32, without_autocast
from nystromformer.settings.schema import result

EPSILON = 1e-4
"""Added to every feature, as by the authors, so that no quotient is 0 / 0."""


@dataclass
class Settings:
    performer_features: int = result(256, at_least=1)
    """Random features of Performer."""


def orthogonal_features(count: int, width: int, generator: torch.Generator | None = None) -> Tensor:
    """(count, width) directions: orthogonal within each block of `width`, with the lengths of Gaussians.

    Float32, on the CPU; drawn from `generator`, or from torch's global one.
    """
    blocks = -(-count // width)
    gaussian = torch.randn(blocks, width, width, generator=generator)
    directions = torch.linalg.qr(gaussian).Q.mT.reshape(-1, width)[:count]
    lengths = torch.randn(count, width, generator=generator).norm(dim=1, keepdim=True)
    return directions * lengths


def _exponents(x_BHND: Tensor, features_RD: Tensor) -> Tensor:
    """Ω x − |x|²/2, so that a product of two features estimates exp(qᵀk/√D)."""
    x_BHND = x_BHND * x_BHND.shape[-1] ** -0.25
    return x_BHND @ features_RD.mT - 0.5 * x_BHND.square().sum(dim=-1, keepdim=True)


def _positive(exponent_BHNR: Tensor, stabiliser: Tensor) -> Tensor:
    return (torch.exp(exponent_BHNR - stabiliser) + EPSILON) * exponent_BHNR.shape[-1] ** -0.5


class PerformerAttention(Mechanism):
    """Performer with its random directions, the buffer `features`, which is saved.

    Args:
        head_dim: D.
        num_features: R; about D · log D are advised.
    """

    features: Tensor

    def __init__(self, head_dim: int, num_features: int = 256) -> None:
        super().__init__()
        if num_features < 1:
            raise ValueError(f"num_features={num_features}: use at least 1")
        self.register_buffer("features", torch.empty(num_features, head_dim))
        self.redraw()

    @classmethod
    def of(cls, config: Any) -> PerformerAttention:
        return cls(config.hidden_size // config.num_attention_heads, config.performer_features)

    @staticmethod
    def flops(config: Any, tokens: NDArray[np.float64]) -> NDArray[np.float64]:
        """8 n R d: the features of Q and K, and the products with them."""
        return 8 * tokens * config.performer_features * config.hidden_size

    def reset_parameters(self) -> None:
        self.redraw()

    @torch.no_grad()
    def redraw(self, generator: torch.Generator | None = None) -> None:
        """New directions, out of `generator` (of the CPU) or torch's global one. All heads share them."""
        count, width = self.features.shape
        self.features.copy_(orthogonal_features(count, width, generator))

    def attended(self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None) -> Tensor:
        """Attention through R random features, computed in at least float32.

        Raises:
            ValueError: the heads have another width than the features.
        """
        d = query.shape[-1]
        if self.features.shape[1] != d:
            raise ValueError(f"features must have shape (count, {d}), got {tuple(self.features.shape)}")
        dtype = query.dtype
        computed_in = at_least_float32(query)
        query, key, value = (x.to(computed_in) for x in (query, key, value))
        with without_autocast(query):
            features_RD = self.features.to(computed_in)
            exponent_BHNR = _exponents(query, features_RD)
            query_BHNR = _positive(exponent_BHNR, exponent_BHNR.detach().amax(dim=-1, keepdim=True))
            exponent_BHNR = _exponents(key, features_RD)
            if key_padding_mask is not None:
                pad_B1N1 = key_padding_mask[:, None, :, None]
                lowest = torch.finfo(computed_in).min
                exponent_BHNR = exponent_BHNR.masked_fill(pad_B1N1, lowest)
            key_BHNR = _positive(exponent_BHNR, exponent_BHNR.detach().amax(dim=(-2, -1), keepdim=True))
            if key_padding_mask is not None:
                key_BHNR = key_BHNR.masked_fill(pad_B1N1, 0)
            total_BHR1 = key_BHNR.sum(dim=2)[..., None]
            weight_BHN1 = query_BHNR @ total_BHR1
            out_BHND = query_BHNR @ (key_BHNR.mT @ value)
            # A row of padding alone has no weight at all; anything finite does there.
            out_BHND = out_BHND / torch.where(weight_BHN1 > 0, weight_BHN1, 1)
        return out_BHND.to(dtype)
