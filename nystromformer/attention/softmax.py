"""Exact attention, BERT's: softmax(Q Kᵀ / √d) V."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nystromformer.attention.mechanism import Mechanism, exact_flops


def softmax_attention(
    query_BHND: Tensor,
    key_BHND: Tensor,
    value_BHND: Tensor,
    *,
    key_padding_mask: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Exact attention by PyTorch's fused kernel, which never stores the N × N matrix.

    Args:
        query_BHND, key_BHND, value_BHND: (B, H, N, D).
        key_padding_mask: (B, N) bool, True at padding. A row of padding alone gives zeros.
        dropout: share of the attention weights to drop; pass 0 outside training.

    Returns:
        (B, H, N, D); what stands at padded positions is finite and means nothing.
    """
    if key_padding_mask is None:
        return F.scaled_dot_product_attention(query_BHND, key_BHND, value_BHND, dropout_p=dropout)
    real_BN = ~key_padding_mask
    empty_B1 = ~real_BN.any(dim=1, keepdim=True)
    pad_B1N1 = key_padding_mask[:, None, :, None]
    out_BHND = F.scaled_dot_product_attention(
        query_BHND.masked_fill(pad_B1N1, 0),
        key_BHND.masked_fill(pad_B1N1, 0),
        value_BHND.masked_fill(pad_B1N1, 0),
        attn_mask=(real_BN | empty_B1)[:, None, None, :],
        dropout_p=dropout,
    )
    return torch.where(empty_B1[:, None, None], 0.0, out_BHND)


class SoftmaxAttention(Mechanism):
    """`softmax_attention`; `dropout` is that of the attention matrix while training."""

    in_transformers = True

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout

    @classmethod
    def of(cls, config: Any) -> SoftmaxAttention:
        return cls(config.attention_probs_dropout_prob)

    @staticmethod
    def flops(config: Any, tokens: NDArray[np.float64]) -> NDArray[np.float64]:
        return exact_flops(config, tokens)

    def is_exact(self, tokens: int) -> bool:
        return True

    def approximation(self, tokens: int) -> dict[str, Any]:
        return {"num_landmarks": tokens}

    def extra_repr(self) -> str:
        return "exact attention"

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, key_padding_mask: Tensor | None = None
    ) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        return softmax_attention(query, key, value, key_padding_mask=key_padding_mask, dropout=dropout)
