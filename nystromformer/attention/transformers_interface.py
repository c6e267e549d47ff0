"""Nyström attention inside any bidirectional encoder of transformers.

    register_attention()
    model = AutoModel.from_pretrained("bert-base-uncased", attn_implementation="nystrom")

The model keeps its weights, its projections and its masks; there is no residual convolution, whose kernel
such a model has not learned.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from nystromformer.attention.longformer import window_attention
from nystromformer.attention.nystrom import attend
from nystromformer.attention.options import NystromOptions
from nystromformer.attention.projections import padding_mask_of


def register_attention(
    name: str = "nystrom",
    *,
    num_landmarks: int = 64,
    pinv_iterations: int | None = 6,
    neighbours: int | None = None,
    salient_tokens: int = 1,
) -> None:
    """Make `attn_implementation=name` known to transformers; again with other options replaces them.

    Layers with a sliding window (ModernBERT's local ones) stay exact within their window. The dropout of
    attention weights has no counterpart here and is not applied.

    Raises:
        ValueError: an option is impossible.
    """
    options = NystromOptions(
        num_landmarks, pinv_iterations, neighbours=neighbours, salient_tokens=salient_tokens
    )
    AttentionInterface.register(name, partial(_attention, options=options))
    AttentionMaskInterface.register(name, _mask)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    options: NystromOptions,
    scaling: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' call: (B, H, N, D) in, (B, N, H, D) out. `attention_mask` is what `_mask` returned."""
    kind = type(module).__name__
    if is_causal or (is_causal is None and getattr(module, "is_causal", False)):
        raise ValueError(f"{kind} is causal: landmarks mix all tokens, so use a bidirectional encoder")
    if position_bias is not None:
        raise ValueError(f"{kind} adds a bias to each pair of tokens, which landmarks cannot take")
    if query.shape != key.shape:
        raise ValueError(
            f"{kind} has queries of shape {tuple(query.shape)} and keys of shape {tuple(key.shape)}: Nyström "
            "attention needs self-attention with as many key heads as query heads"
        )
    padding = padding_mask_of(attention_mask)
    usual_scaling = query.shape[-1] ** -0.5
    if scaling is not None and abs(scaling - usual_scaling) > 1e-9:
        query = query * (scaling / usual_scaling)
    if sliding_window is not None:
        # transformers counts the token itself: |i − j| < sliding_window.
        window = 2 * sliding_window - 1
        out_BHND = window_attention(query, key, value, window=window, key_padding_mask=padding)
    else:
        out_BHND = attend(query, key, value, options, key_padding_mask=padding)
    return out_BHND.transpose(1, 2).contiguous(), None


def _mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    *,
    attention_mask: Tensor | None = None,
    use_vmap: bool = False,
    **_: Any,
) -> Tensor | None:
    """The 2-D mask as it is, (B, N), 1 at real tokens."""
    if use_vmap:
        raise ValueError("this model masks single pairs of tokens, which landmarks cannot take")
    return None if attention_mask is None else attention_mask[:, -kv_length:]
