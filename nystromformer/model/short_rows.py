"""What Nyström attention does with rows of at most m tokens, other than exact attention with the convolution.

A model pretrained on full rows has only seen landmarks of several tokens each, and on them the convolution
gives back what the landmarks blur. In a row of at most m tokens nothing is blurred. The choices:

    exact                       S V + convolution(V): what the method converges to, and the default
    exact_without_convolution   S V
    landmark_per_token          S Z S V + convolution(V), Z the iterative inverse of S
    segments                    landmarks of as many tokens as at full length + convolution(V)

Shapes: B rows, H heads, N positions, D head width; L real tokens of a row, R landmarks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nystromformer.attention.convolution import residual_convolution
from nystromformer.attention.nystrom import nystrom_attention
from nystromformer.attention.precision import without_autocast
from nystromformer.attention.pseudoinverse import exact_pinv, iterative_pinv
from nystromformer.attention.recording import is_recorded


def attention_with_short_rows(
    query_BHND: Tensor,
    key_BHND: Tensor,
    value_BHND: Tensor,
    *,
    short_rows: str,
    segment: int,
    num_landmarks: int,
    padding_mask_BN: Tensor | None,
    pinv_iterations: int | None,
    landmarks: str,
    kernel_H1K1: Tensor | None,
    neighbours: int | None = None,
    salient_tokens: int = 1,
) -> Tensor:
    """(B, H, N, D): each row by its own length, long rows as ever; a row's output is its own.

    Rows that are computed alike go together, so a batch costs a few calls, and on a GPU the lengths are
    waited for.

    Args:
        short_rows: one of the configuration's SHORT_ROWS but for `exact`.
        segment: tokens of a landmark in short rows, for `segments`.
        neighbours, salient_tokens: of long rows.

    Raises:
        ValueError: the call is recorded, and the rows' lengths would become constants of the record.
    """
    if is_recorded():
        raise ValueError(
            f"short_rows={short_rows!r} is computed by each row's length, which a trace or an export cannot "
            "follow: set short_rows='exact' in the configuration"
        )
    b, _, n, _ = query_BHND.shape
    lengths = [n] * b if padding_mask_BN is None else (~padding_mask_BN).sum(dim=1).tolist()
    groups: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        groups.setdefault(_group(length, short_rows, segment, num_landmarks), []).append(row)
    parts = []
    for group, members in groups.items():
        rows = torch.tensor(members, device=query_BHND.device)
        query, key, value = (x.index_select(0, rows) for x in (query_BHND, key_BHND, value_BHND))
        mask = None if padding_mask_BN is None else padding_mask_BN.index_select(0, rows)
        if group < 0 and short_rows == "landmark_per_token":
            parts.append(_landmark_per_token(query, key, value, mask, pinv_iterations, kernel_H1K1))
            continue
        without = group < 0 and short_rows == "exact_without_convolution"
        parts.append(
            nystrom_attention(
                query,
                key,
                value,
                num_landmarks=-group if group < 0 and short_rows == "segments" else num_landmarks,
                key_padding_mask=mask,
                pinv_iterations=pinv_iterations,
                landmarks=landmarks,
                conv_weight=None if without else kernel_H1K1,
                neighbours=None if group < 0 else neighbours,
                salient_tokens=salient_tokens,
            )
        )
    order = torch.tensor([row for members in groups.values() for row in members], device=query_BHND.device)
    return torch.cat(parts).index_select(0, order.argsort())


def _group(length: int, short_rows: str, segment: int, num_landmarks: int) -> int:
    """0 for long rows; below it, short rows that are computed alike."""
    if length > num_landmarks or length == 0:
        return 0
    if short_rows == "exact_without_convolution":
        return -1
    return -length if short_rows == "landmark_per_token" else -max(-(-length // segment), 1)


def _landmark_per_token(
    query_BHND: Tensor,
    key_BHND: Tensor,
    value_BHND: Tensor,
    padding_mask_BN: Tensor | None,
    pinv_iterations: int | None,
    kernel_H1K1: Tensor | None,
) -> Tensor:
    """F̃ Z B̃ V where every token is a landmark: F̃ = Ã = B̃ = S. All rows have as many real tokens."""
    b, h, n, d = query_BHND.shape
    if padding_mask_BN is not None:
        value_BHND = value_BHND.masked_fill(padding_mask_BN[:, None, :, None], 0)
        real_BN = ~padding_mask_BN
        places_BL = real_BN.nonzero()[:, 1].view(b, -1)
        index_BHLD = places_BL[:, None, :, None].expand(b, h, -1, d)
        query, key, value = (x.gather(2, index_BHLD) for x in (query_BHND, key_BHND, value_BHND))
    else:
        query, key, value = query_BHND, key_BHND, value_BHND
    with without_autocast(query):
        if query.dtype != torch.float64:
            query, key, value = query.float(), key.float(), value.float()
        s_BHLL = torch.softmax((query * d**-0.5) @ key.mT, dim=-1)
        inverse = exact_pinv(s_BHLL) if pinv_iterations is None else iterative_pinv(s_BHLL, pinv_iterations)
        out = (s_BHLL @ (inverse @ (s_BHLL @ value))).to(query_BHND.dtype)
    if padding_mask_BN is not None:
        out = torch.zeros_like(query_BHND).scatter(2, index_BHLD, out)
    if kernel_H1K1 is not None:
        out = out + residual_convolution(value_BHND, kernel_H1K1)
    if padding_mask_BN is not None:
        out = out.masked_fill(padding_mask_BN[:, None, :, None], 0)
    return out
