"""Self-attention of one layer: projections around the mechanism that the configuration names."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nystromformer.attention.convolution import residual_convolution
from nystromformer.attention.landmarks import Segments
from nystromformer.attention.linformer import LinformerAttention
from nystromformer.attention.longformer import longformer_attention
from nystromformer.attention.nystrom import describe_implementation, nystrom_attention
from nystromformer.attention.performer import PerformerAttention
from nystromformer.attention.precision import as_product
from nystromformer.attention.recording import is_recorded
from nystromformer.attention.softmax import softmax_attention
from nystromformer.model.configuration import NystromformerConfig, near_in_words
from nystromformer.model.linear import linear
from nystromformer.model.short_rows import attention_with_short_rows


class ResidualConvolution(nn.Conv2d):
    """Holds one kernel a head, (heads, 1, width, 1), under transformers' name `conv.weight`."""

    def __init__(self, num_heads: int, width: int) -> None:
        super().__init__(
            num_heads, num_heads, (width, 1), padding=(width // 2, 0), bias=False, groups=num_heads
        )


class NystromformerSelfAttention(nn.Module):
    """Multi-head self-attention, (batch, tokens, hidden) → (batch, tokens, hidden)."""

    def __init__(self, config: NystromformerConfig) -> None:
        super().__init__()
        self.mechanism = config.attention
        self.num_heads = config.num_attention_heads
        self.num_landmarks = config.num_landmarks
        self.landmarks = config.landmarks
        self.pinv_iterations = config.pinv_iterations
        self.neighbours = config.neighbours
        self.salient_tokens = config.salient_tokens
        self.short_rows = config.short_rows
        self.short_row_segment = config.short_row_segment
        self.window = config.longformer_window
        self.implementation: str | None = None
        """As of `nystrom_attention`: how the same is computed, which is no part of a configuration."""
        self.attention_dropout = config.attention_probs_dropout_prob
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        if config.attention == "linformer":
            self.linformer = LinformerAttention(
                config.num_attention_heads,
                config.max_position_embeddings,
                config.linformer_projected,
                config.linformer_share_heads,
            )
        elif config.attention == "performer":
            self.performer = PerformerAttention(
                config.hidden_size // config.num_attention_heads, config.performer_features
            )
        self.conv = (
            ResidualConvolution(config.num_attention_heads, config.conv_kernel_size)
            if config.conv_kernel_size is not None
            else None
        )

    def forward(
        self, hidden_states: Tensor, padding_mask: Tensor | None, segments: Segments | None
    ) -> Tensor:
        hidden_states = as_product(hidden_states)  # autocast would convert it for each projection anew
        query, key, value = (
            linear(projection, hidden_states).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        kernel = None if self.conv is None else self.conv.weight
        if self.mechanism == "nystrom" and self.short_rows != "exact":
            out = attention_with_short_rows(
                query,
                key,
                value,
                short_rows=self.short_rows,
                segment=self.short_row_segment,
                num_landmarks=self.num_landmarks,
                padding_mask_BN=padding_mask,
                pinv_iterations=self.pinv_iterations,
                landmarks=self.landmarks,
                kernel_H1K1=kernel,
                neighbours=self.neighbours,
                salient_tokens=self.salient_tokens,
            )
        elif self.mechanism == "nystrom":
            out = nystrom_attention(
                query,
                key,
                value,
                num_landmarks=self.num_landmarks,
                key_padding_mask=padding_mask,
                pinv_iterations=self.pinv_iterations,
                landmarks=self.landmarks,
                conv_weight=kernel,
                segments=segments,
                neighbours=self.neighbours,
                implementation=self.implementation,
                salient_tokens=self.salient_tokens,
            )
        else:
            out = self._another_mechanism(query, key, value, padding_mask)
            if kernel is not None:
                if padding_mask is not None:
                    value = value.masked_fill(padding_mask[:, None, :, None], 0)
                out = out + residual_convolution(value, kernel)
        return out.transpose(1, 2).flatten(2)

    def _another_mechanism(
        self, query: Tensor, key: Tensor, value: Tensor, padding_mask: Tensor | None
    ) -> Tensor:
        if self.mechanism == "linformer":
            return self.linformer(query, key, value, key_padding_mask=padding_mask)
        if self.mechanism == "longformer":
            return longformer_attention(query, key, value, window=self.window, key_padding_mask=padding_mask)
        if self.mechanism == "performer":
            return self.performer(query, key, value, key_padding_mask=padding_mask)
        dropout = self.attention_dropout if self.training else 0.0
        return softmax_attention(query, key, value, key_padding_mask=padding_mask, dropout=dropout)

    def segments(self, padding_mask: Tensor | None) -> Segments | None:
        """What all layers share about a batch's padding; None where nothing needs it."""
        if self.mechanism != "nystrom" or padding_mask is None or self.neighbours is not None:
            return None
        if padding_mask.device.type == "cpu":  # where rows are computed one by one, without their padding
            return None
        if not is_recorded() and padding_mask.shape[1] <= self.num_landmarks:
            return None
        return Segments.of(padding_mask, self.num_landmarks)

    def describe(self, length: int, dtype: torch.dtype) -> str:
        """What computes the attention of rows of so many tokens, in words, on the device of the weights."""
        if self.mechanism != "nystrom":
            return f"{self.mechanism} of PyTorch's operators"
        width = self.query.out_features // self.num_heads
        query = torch.empty(1, self.num_heads, length, width, dtype=dtype, device=self.query.weight.device)
        return describe_implementation(
            query,
            self.num_landmarks,
            pinv_iterations=self.pinv_iterations,
            landmarks=self.landmarks,
            implementation=self.implementation,
            neighbours=self.neighbours,
            salient_tokens=self.salient_tokens,
        )

    def branch(self, real_tokens: int) -> str:
        """What this layer computes for a row of so many real tokens: `exact`, or the mechanism's name."""
        if self.mechanism == "softmax":
            return "exact"
        if self.mechanism == "nystrom" and real_tokens <= self.num_landmarks:
            return "exact" if self.short_rows.startswith("exact") else self.mechanism
        if self.mechanism == "nystrom" and real_tokens <= 2 * (self.neighbours or 0):
            return "exact"
        return self.mechanism

    def extra_repr(self) -> str:
        if self.mechanism == "softmax":
            return "exact attention"
        if self.mechanism != "nystrom":
            return f"{self.mechanism} attention"
        near = near_in_words(self.neighbours, self.salient_tokens)
        return (
            f"Nyström attention with {self.num_landmarks} landmarks ({self.landmarks}){near}; exact for rows "
            f"of at most {max(self.num_landmarks, 2 * (self.neighbours or 0))} tokens"
        )


def padding_mask_of(attention_mask: Tensor | None) -> Tensor | None:
    """transformers' attention mask, (B, N) with 1 at real tokens, as a bool mask, True at padding.

    None where every token is known to be real, which spares the masked path. That is looked up only
    on a CPU, since on a GPU the look would wait for the device, and not where the call is recorded, since
    the record is run on other masks.

    Raises:
        ValueError: the mask has more than two dimensions.
    """
    if attention_mask is None:
        return None
    if attention_mask.dim() != 2:
        raise ValueError(
            "attention_mask must be (batch, tokens) with 1 at real tokens and 0 at padding, got shape "
            f"{tuple(attention_mask.shape)}: linear attention has no mask for each pair of tokens"
        )
    padding_mask = attention_mask == 0
    if padding_mask.device.type != "cpu" or torch.compiler.is_compiling() or is_recorded():
        return padding_mask
    return padding_mask if padding_mask.any() else None
