"""A position table grown to another length.

Shapes: the table is (POSITION_OFFSET + positions, hidden); the rows before the offset stay as they are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nystromformer.model.encoder import POSITION_OFFSET


def grow_positions(table: Tensor, positions: int, how: str = "tile") -> Tensor:
    """Grow to `positions` by `tile` or `interpolate`; to fewer positions, both cut the table.

    Raises:
        ValueError: `how` is neither.
    """
    if how not in ("tile", "interpolate"):
        raise ValueError(f"positions={how!r} is unknown: use tile or interpolate")
    if how == "tile" or positions <= table.shape[0] - POSITION_OFFSET:
        return tile_positions(table, positions)
    return interpolate_positions(table, positions)


def tile_positions(table: Tensor, positions: int) -> Tensor:
    """Repeat the trained rows (the authors' way): the first positions mean what they did before.

    Args:
        table: (POSITION_OFFSET + trained positions, hidden).

    Returns:
        (POSITION_OFFSET + positions, hidden); the trained rows keep their places.
    """
    head, trained = table[:POSITION_OFFSET], table[POSITION_OFFSET:]
    repeats = -(-positions // trained.shape[0])
    return torch.cat([head, trained.repeat(repeats, 1)[:positions]])


def interpolate_positions(table: Tensor, positions: int) -> Tensor:
    """Stretch the trained rows over the new length, first row on first, last on last.

    Neighbours come closer together than they were in training, and every position but the first
    changes; in exchange no two positions are the same.
    """
    head, trained = table[:POSITION_OFFSET], table[POSITION_OFFSET:]
    stretched = F.interpolate(trained.T[None].float(), size=positions, mode="linear", align_corners=True)
    return torch.cat([head, stretched[0].T.to(table.dtype)])
