"""The paper's equations, written down once in float64, one row and one head at a time: the reference."""

import torch
from torch import Tensor


def reference_nystrom(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    padding: Tensor,
    num_landmarks: int,
    conv_weight: Tensor | None = None,
    iterations: int = 6,
) -> Tensor:
    """(B, H, N, D) in float64; padded positions are zero."""
    query, key, value = query.double(), key.double(), value.double()
    out = torch.zeros_like(value)
    for row in range(query.shape[0]):
        real = (~padding[row]).nonzero()[:, 0]
        for head in range(query.shape[1]):
            out[row, head, real] = _one_head(
                query[row, head, real],
                key[row, head, real],
                value[row, head, real],
                num_landmarks,
                iterations,
            )
    if conv_weight is not None:
        heads, _, width, _ = conv_weight.shape
        silent = value.masked_fill(padding[:, None, :, None], 0)
        residual = torch.nn.functional.conv2d(
            silent, conv_weight.double(), padding=(width // 2, 0), groups=heads
        )
        out = out + residual.masked_fill(padding[:, None, :, None], 0)
    return out


def _one_head(query: Tensor, key: Tensor, value: Tensor, m: int, iterations: int) -> Tensor:
    scale = query.shape[1] ** -0.5
    if len(query) <= m:
        return torch.softmax(query @ key.T * scale, dim=-1) @ value
    query_landmarks = torch.stack([part.mean(dim=0) for part in torch.tensor_split(query, m)])
    key_landmarks = torch.stack([part.mean(dim=0) for part in torch.tensor_split(key, m)])
    f = torch.softmax(query @ key_landmarks.T * scale, dim=-1)
    a = torch.softmax(query_landmarks @ key_landmarks.T * scale, dim=-1)
    b = torch.softmax(query_landmarks @ key.T * scale, dim=-1)
    identity = torch.eye(m, dtype=a.dtype, device=a.device)
    z = a.T / (a.sum(dim=0).max() * a.sum(dim=1).max())
    for _ in range(iterations):
        z = 0.25 * z @ (13 * identity - a @ z @ (15 * identity - a @ z @ (7 * identity - a @ z)))
    return f @ z @ b @ value
