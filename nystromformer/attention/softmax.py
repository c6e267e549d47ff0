"""Exact attention, BERT's: softmax(Q Kᵀ / √d) V."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nystromformer.attention.mechanism import Mechanism, exact_flops
from nystromformer.attention.projections import seen_keys, without_padding


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
    tensors = without_padding(query_BHND, key_BHND, value_BHND, key_padding_mask)
    out_BHND = F.scaled_dot_product_attention(
        *tensors, attn_mask=seen_keys(key_padding_mask), dropout_p=dropout
    )
    if key_padding_mask is None:
        return out_BHND
    empty_B111 = key_padding_mask.all(dim=1)[:, None, None, None]
    return torch.where(empty_B111, 0.0, out_BHND)


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
