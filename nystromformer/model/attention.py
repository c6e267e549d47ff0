"""Self-attention of one layer: projections around the mechanism that the configuration names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nystromformer.attention.convolution import residual_convolution
from nystromformer.attention.mechanism import Mechanism, mechanism_of
from nystromformer.attention.precision import as_product
from nystromformer.model.configuration import NystromformerConfig
from nystromformer.model.linear import linear


class NystromformerSelfAttention(nn.Module):
    """Multi-head self-attention, (batch, tokens, hidden) → (batch, tokens, hidden)."""

    def __init__(self, config: NystromformerConfig) -> None:
        super().__init__()
        self.mechanism = config.attention
        self.num_heads = config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.add_module(self.mechanism, mechanism_of(self.mechanism).of(config))
        # One kernel a head, (heads, 1, width, 1), under transformers' name `conv.weight`.
        h, width = config.num_attention_heads, config.conv_kernel_size
        self.conv = None
        if width is not None:
            self.conv = nn.Conv2d(h, h, (width, 1), padding=(width // 2, 0), bias=False, groups=h)

    @property
    def attend(self) -> Mechanism:
        """The mechanism, which is held under its name."""
        found = self._modules[self.mechanism]
        assert isinstance(found, Mechanism)
        return found

    def forward(self, hidden_states: Tensor, padding_mask: Tensor | None, shared: Any = None) -> Tensor:
        """Attention; `shared` is what the first layer's mechanism found out about the padding."""
        hidden_states = as_product(hidden_states)  # autocast would convert it for each projection anew
        projections = (self.query, self.key, self.value)
        query, key, value = (self.in_heads(linear(made, hidden_states)) for made in projections)
        kernel, attend = None if self.conv is None else self.conv.weight, self.attend
        if attend.convolves:
            out = attend(query, key, value, key_padding_mask=padding_mask, conv_weight=kernel, shared=shared)
        else:
            if attend.fixed_length and isinstance(query.shape[2], torch.SymInt):
                raise ValueError(
                    f"{self.mechanism} attention cannot be exported with a dynamic length: give the tokens a "
                    "fixed one, or trace the model"
                )
            out = attend(query, key, value, key_padding_mask=padding_mask)
            if kernel is not None:
                if padding_mask is not None:
                    value = value.masked_fill(padding_mask[:, None, :, None], 0)
                out = out + residual_convolution(value, kernel)
        return out.transpose(1, 2).flatten(2)

    def in_heads(self, projected_BNE: Tensor) -> Tensor:
        """(batch, heads, tokens, width) of what a projection gave."""
        return projected_BNE.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def describe(self, length: int, dtype: torch.dtype) -> str:
        """What computes the attention of rows of so many tokens, in words, on the device of the weights."""
        width = self.query.out_features // self.num_heads
        shape, device = (1, self.num_heads, length, width), self.query.weight.device
        found = self.attend.described(torch.empty(shape, dtype=dtype, device=device))
        return found or f"{self.mechanism} of PyTorch's operators"

    def branch(self, real_tokens: int) -> str:
        """What this layer computes for a row of so many real tokens: `exact`, or the mechanism's name."""
        return "exact" if self.attend.is_exact(real_tokens) else self.mechanism
