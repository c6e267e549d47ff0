"""Rows with their real tokens in front: what the blocks of neighbours.py are cut from.

Shapes: B rows, H heads, N positions, P places of the new order, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nystromformer.attention.recording import is_recorded


@dataclass(frozen=True)
class RealTokensFirst:
    """The rows' real tokens in front, in order; what follows them is padding.

    P places: N, but in a record whole blocks, one more than there need be. A number of blocks that follows
    from N by rounding, or that can be 1, would tie the record to the lengths that round alike.
    """

    order_BP: Tensor
    """The position that each place's token comes from."""
    back_BN: Tensor
    """The place that each position's token went to."""
    padding_BP: Tensor
    """True at padding, of the new order."""

    @classmethod
    def of(cls, key_padding_mask_BN: Tensor, neighbours: int | None = None) -> RealTokensFirst:
        """Of a mask, True at padding; without `neighbours` P is N in a record too."""
        b, n = key_padding_mask_BN.shape
        real_BN = (~key_padding_mask_BN).long()
        count_B1 = real_BN.sum(dim=1, keepdim=True)
        after_BN = count_B1 + key_padding_mask_BN.long().cumsum(dim=1) - 1
        back_BN = torch.where(key_padding_mask_BN, after_BN, real_BN.cumsum(dim=1) - 1)
        places = n
        if neighbours is not None and is_recorded():
            places = ((n - 1) // neighbours + 2) * neighbours
        every_N = torch.arange(n, device=back_BN.device)
        order_BP = back_BN.new_zeros(b, places).scatter(1, back_BN, every_N.expand_as(back_BN))
        padding_BP = torch.arange(places, device=back_BN.device) >= count_B1
        return cls(order_BP, back_BN, padding_BP)

    def pack(self, x_BHND: Tensor) -> Tensor:
        """(B, H, P, D), 0 at padding as before."""
        packed_BHPD = _taken(x_BHND, self.order_BP)
        return packed_BHPD.masked_fill(self.padding_BP[:, None, :, None], 0) if is_recorded() else packed_BHPD

    def unpack(self, x_BHPD: Tensor) -> Tensor:
        return _taken(x_BHPD, self.back_BN)


def _taken(x: Tensor, places: Tensor) -> Tensor:
    return x.gather(2, places[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
