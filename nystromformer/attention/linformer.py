"""Linformer: attention to a learned projection of the keys and values (Wang et al. 2020, 2006.04768).

Shapes: B rows, H heads, N positions, D head width, L longest input, P projected length; G is 1 where
the heads share a projection, else H.

    K' = E K, V' = E V  (P × N times N × D)      output = softmax(Q K'ᵀ/√D) V'

One projection E for the keys and the values, as in the paper's "key-value sharing".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from nystromformer.attention.mechanism import Mechanism
from nystromformer.settings.schema import result


@dataclass
class Settings:
    linformer_projected: int = result(256, at_least=1)
    """Mixtures of tokens that Linformer attends to."""
    linformer_share_heads: bool = result(True)
    """One projection a layer for all of Linformer's heads, or one a head."""


class LinformerAttention(Mechanism):
    """Linformer with its projection, the parameter `projection`: (1, P, L) shared over heads, or (H, P, L).

    Args:
        num_heads: H.
        max_positions: L, the longest input.
        projected: P, the number of mixtures.
        share_heads: one projection for all heads, or one each.
    """

    def __init__(
        self, num_heads: int, max_positions: int, projected: int = 256, share_heads: bool = True
    ) -> None:
        super().__init__()
        for name, count in (("max_positions", max_positions), ("projected", projected)):
            if count < 1:
                raise ValueError(f"{name}={count}: use at least 1")
        self.projection = nn.Parameter(torch.empty(1 if share_heads else num_heads, projected, max_positions))
        self.reset_parameters()

    @classmethod
    def of(cls, config: Any) -> LinformerAttention:
        return cls(
            config.num_attention_heads,
            config.max_position_embeddings,
            config.linformer_projected,
            config.linformer_share_heads,
        )

    @staticmethod
    def flops(config: Any, tokens: NDArray[np.float64]) -> NDArray[np.float64]:
        """8 n P d: E K, E V, and attention to P mixtures."""
        return 8 * tokens * config.linformer_projected * config.hidden_size

    def reset_parameters(self) -> None:
        """Entries from N(0, 1/P), as in the paper's theorem 1, out of torch's global generator."""
        nn.init.normal_(self.projection, std=self.projection.shape[1] ** -0.5)

    def attended(self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None) -> Tensor:
        """Attention to P mixtures of the tokens.

        The column of the projection that a token meets is its place among the row's real tokens, so a
        row's output does not depend on the padding around it.

        Raises:
            ValueError: the input is longer than the projection, or has another number of heads.
        """
        (_, h, n, _), projection_GPL = query.shape, self.projection
        if projection_GPL.shape[0] not in (1, h):
            shape = tuple(projection_GPL.shape)
            raise ValueError(f"projection must have shape (1 or {h}, projected, longest), got {shape}")
        if n > projection_GPL.shape[2]:
            raise ValueError(f"{n} tokens are more than the {projection_GPL.shape[2]} of the projection")
        if key_padding_mask is None:
            projection_BGPN = projection_GPL[None, :, :, :n].to(key.dtype)
        else:
            rank_BN = ((~key_padding_mask).long().cumsum(dim=1) - 1).clamp(min=0)
            # Padding is zero by now, so that the column it meets does not matter.
            projection_BGPN = projection_GPL.to(key.dtype)[:, :, rank_BN].permute(2, 0, 1, 3)
        return F.scaled_dot_product_attention(query, projection_BGPN @ key, projection_BGPN @ value)
