"""What every mechanism asks of its queries, keys and values.

Shapes: B rows, H heads, N positions, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nystromformer.attention.recording import is_recorded


def check_projections(query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None) -> None:
    """Raise ValueError where the shapes, or the mask's shape or dtype, do not fit together."""
    if query.dim() != 4 or not query.shape == key.shape == value.shape:
        raise ValueError(
            "query, key and value must share one shape (batch, heads, tokens, width), got "
            f"{tuple(query.shape)}, {tuple(key.shape)}, {tuple(value.shape)}"
        )
    if not query.dtype == key.dtype == value.dtype or not query.dtype.is_floating_point:
        raise ValueError(
            "query, key and value must share one floating-point dtype, got "
            f"{query.dtype}, {key.dtype}, {value.dtype}"
        )
    if query.numel() == 0:
        raise ValueError(f"query is empty: it has the shape {tuple(query.shape)}")
    b, _, n, _ = query.shape
    if key_padding_mask is not None and (
        key_padding_mask.dtype != torch.bool or key_padding_mask.shape != (b, n)
    ):
        raise ValueError(
            f"key_padding_mask must be bool of shape {(b, n)}, True at padding, got "
            f"{key_padding_mask.dtype} of shape {tuple(key_padding_mask.shape)}"
        )


def mask_of(x_BHND: Tensor, key_padding_mask: Tensor | None) -> Tensor:
    """The mask, (B, N); one that is False everywhere where there is none."""
    if key_padding_mask is not None:
        return key_padding_mask
    b, _, n, _ = x_BHND.shape
    return torch.zeros(b, n, dtype=torch.bool, device=x_BHND.device)


def seen_keys(key_padding_mask: Tensor | None) -> Tensor | None:
    """What a query attends to, (B, 1, 1, N): the real tokens; in a row of padding alone everything, all zero
    by `without_padding`, rather than nothing."""
    if key_padding_mask is None:
        return None
    empty_B1 = key_padding_mask.all(dim=1, keepdim=True)
    return (~key_padding_mask | empty_B1)[:, None, None]


def without_padding(
    query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The same with zeros at padding: infinities and NaN there must not reach a product."""
    if key_padding_mask is None:
        return query, key, value
    pad_B1N1 = key_padding_mask[:, None, :, None]
    return query.masked_fill(pad_B1N1, 0), key.masked_fill(pad_B1N1, 0), value.masked_fill(pad_B1N1, 0)


def zero_at_padding(out_BHND: Tensor, key_padding_mask: Tensor | None) -> Tensor:
    """The output with 0 at padded positions, so that no gradient enters there."""
    return (
        out_BHND if key_padding_mask is None else out_BHND.masked_fill(key_padding_mask[:, None, :, None], 0)
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
