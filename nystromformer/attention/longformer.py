"""Longformer: a sliding window, and a first token that sees and is seen by all (2004.05150).

Shapes: B rows, H heads, N positions, D head width; C blocks of T queries, each with the W = T + 2 · half
keys that any of its queries can reach.

Query i attends to the keys j with |i − j| ≤ half = window // 2, and to the row's first real token,
[CLS]; [CLS] attends to every token. The paper gives [CLS] projections of its own for this; here it
shares those of the other tokens, so that the mechanism has no parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nystromformer.attention.mechanism import Mechanism
from nystromformer.attention.projections import (
    check_projections,
    mask_of,
    seen_keys,
    without_padding,
    zero_at_padding,
)
from nystromformer.settings.schema import result

SMALLEST_BLOCK = 32


@dataclass
class Settings:
    longformer_window: int = result(257, odd=True)
    """Positions that a token of Longformer sees, itself in the middle, odd."""


def window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    window: int,
    key_padding_mask: Tensor | None = None,
) -> Tensor:
    """Longformer without a token that sees all: the local layers of ModernBERT."""
    check_projections(query, key, value, key_padding_mask)
    _check_window(window)
    query, key, value = without_padding(query, key, value, key_padding_mask)
    real_BN = ~mask_of(query, key_padding_mask)
    out_BHND = _within_windows(query, key, value, real_BN, None, half=window // 2)
    return zero_at_padding(out_BHND, key_padding_mask)


def _within_windows(
    query_BHND: Tensor,
    key_BHND: Tensor,
    value_BHND: Tensor,
    real_BN: Tensor,
    first_B: Tensor | None,
    half: int,
) -> Tensor:
    """Every query's attention to its window, and to [CLS] if given: the blocks are one batch of SDPA."""
    b, h, n, d = query_BHND.shape
    block = max(half, SMALLEST_BLOCK)
    blocks, width = -(-n // block), block + 2 * half
    after = blocks * block - n

    def windows(x_BHND: Tensor) -> Tensor:
        """(B · C, H, W, D), and with [CLS] in front (B · C, H, 1 + W, D)."""
        padded_BHPD = F.pad(x_BHND, (0, 0, half, half + after))
        windows_BCHWD = padded_BHPD.unfold(2, width, block).permute(0, 2, 1, 4, 3)
        if first_B is not None:
            first_BH1D = x_BHND.gather(2, first_B[:, None, None, None].expand(b, h, 1, d))
            first_BCH1D = first_BH1D[:, None].expand(b, blocks, h, 1, d)
            windows_BCHWD = torch.cat([first_BCH1D, windows_BCHWD], dim=3)
        return windows_BCHWD.flatten(0, 1)

    # A query sees what is near and real, and itself, so that one at padding sees something.
    place_T1 = torch.arange(block, device=real_BN.device)[:, None]
    place_W = torch.arange(width, device=real_BN.device)
    near_TW = (place_W >= place_T1) & (place_W <= place_T1 + 2 * half)
    if first_B is not None:  # [CLS] stands in front already
        real_BN = real_BN & (torch.arange(n, device=real_BN.device) != first_B[:, None])
    real_BCW = F.pad(real_BN, (half, half + after)).unfold(1, width, block)
    seen_BCTX = near_TW & (real_BCW[:, :, None] | (place_W == place_T1 + half))
    if first_B is not None:
        seen_BCTX = F.pad(seen_BCTX, (1, 0), value=True)

    query_BHCTD = F.pad(query_BHND, (0, 0, 0, after)).unflatten(2, (blocks, block))
    out_KHTD = F.scaled_dot_product_attention(
        query_BHCTD.transpose(1, 2).flatten(0, 1),
        windows(key_BHND),
        windows(value_BHND),
        attn_mask=seen_BCTX.flatten(0, 1)[:, None],
    )
    return out_KHTD.unflatten(0, (b, blocks)).transpose(1, 2).flatten(2, 3)[:, :, :n]


def _check_window(window: int) -> None:
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window={window} has no middle: use an odd number of positions")


class LongformerAttention(Mechanism):
    """Longformer without parameters.

    Args:
        window: how many positions a token sees, itself in the middle.

    Raises:
        ValueError: the window has no middle.
    """

    fixed_length = True  # its blocks are counted

    def __init__(self, window: int) -> None:
        super().__init__()
        _check_window(window)
        self.window = window

    @classmethod
    def of(cls, config: Any) -> LongformerAttention:
        return cls(config.longformer_window)

    @staticmethod
    def flops(config: Any, tokens: NDArray[np.float64]) -> NDArray[np.float64]:
        """4 n W d + 8 n d: the window, and [CLS] both ways."""
        seen = np.minimum(tokens, config.longformer_window)
        return 4 * tokens * seen * config.hidden_size + 8 * tokens * config.hidden_size

    def attended(self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None) -> Tensor:
        """Attention within the window, whose distances are counted in positions, and through [CLS], in time
        and memory linear in n."""
        b, h, _, d = query.shape
        real_BN = ~mask_of(query, key_padding_mask)
        first_B = real_BN.to(torch.uint8).argmax(dim=1)  # [CLS]; 0 in a row of padding alone
        out_BHND = _within_windows(query, key, value, real_BN, first_B, half=self.window // 2)
        index_BH1D = first_B[:, None, None, None].expand(b, h, 1, d)
        first_BH1D = F.scaled_dot_product_attention(
            query.gather(2, index_BH1D), key, value, attn_mask=seen_keys(key_padding_mask)
        )
        return out_BHND.scatter(2, index_BH1D, first_BH1D.to(out_BHND.dtype))
