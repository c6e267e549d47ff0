"""The paper's equations, written down once in float64, one row and one head at a time: the reference."""

import torch
from torch import Tensor

LARGEST_RATIO = 8


def reference_nystrom(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    padding: Tensor,
    num_landmarks: int,
    conv_weight: Tensor | None = None,
    iterations: int = 6,
    neighbours: int | None = None,
    salient_tokens: int = 1,
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
                neighbours,
                salient_tokens,
            )
    if conv_weight is not None:
        heads, _, width, _ = conv_weight.shape
        silent = value.masked_fill(padding[:, None, :, None], 0)
        residual = torch.nn.functional.conv2d(
            silent, conv_weight.double(), padding=(width // 2, 0), groups=heads
        )
        out = out + residual.masked_fill(padding[:, None, :, None], 0)
    return out


def attended(query: Tensor, key: Tensor, m: int) -> Tensor:
    """Of one head's tokens: the column sums of B̃, by which the salient ones are chosen."""
    query_landmarks = torch.stack([part.mean(dim=0) for part in torch.tensor_split(query, m)])
    return torch.softmax(query_landmarks @ key.T * query.shape[1] ** -0.5, dim=-1).sum(dim=0).detach()


def _one_head(
    query: Tensor, key: Tensor, value: Tensor, m: int, iterations: int, neighbours: int | None, salient: int
) -> Tensor:
    scale = query.shape[1] ** -0.5
    if len(query) <= max(m, 2 * (neighbours or 0)):
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
    if neighbours is not None:
        order = torch.argsort(attended(query, key, m)[1:], descending=True, stable=True) + 1
        chosen = torch.cat([order.new_zeros(1), order[: salient - 1]])
        return _with_neighbours(query, key, value, query_landmarks, key_landmarks, z, neighbours, chosen)
    return f @ z @ b @ value


def _with_neighbours(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_landmarks: Tensor,
    key_landmarks: Tensor,
    z: Tensor,
    w: int,
    salient: Tensor,
) -> Tensor:
    """The definition of attention/neighbours.py in n × n matrices."""
    n, m, scale = len(query), len(z), query.shape[1] ** -0.5
    block = torch.arange(n, device=query.device) // w
    near = (block[:, None] - block[None]).abs() <= 1
    near[:, salient] = True
    # Numbers that leave no exponential too large, and cancel.
    largest = (query @ torch.cat([key, key_landmarks]).T * scale).amax(dim=1, keepdim=True).detach()
    exact = torch.exp(query @ key.T * scale - largest) * near
    at_landmarks = torch.exp(query @ key_landmarks.T * scale - largest)
    of_landmarks = torch.exp(query_landmarks @ key.T * scale)
    sums = torch.exp(query_landmarks @ key_landmarks.T * scale).sum(dim=1)
    ratio = of_landmarks.sum(dim=1) / sums
    kept = (LARGEST_RATIO * n / m / ratio).clamp(max=1).detach()
    far = at_landmarks @ z @ torch.diag(kept / sums) @ of_landmarks * ~near
    parts = torch.tensor_split(block, m)
    segment = torch.cat([torch.full_like(part, number) for number, part in enumerate(parts)])
    counts = (~near).double() @ torch.nn.functional.one_hot(segment, m).double()
    least = (counts * at_landmarks).sum(dim=1, keepdim=True)
    far_sum = far.sum(dim=1, keepdim=True)
    trust = torch.where(least > 0, far_sum / least.clamp(min=1e-200), 0).clamp(0, 1)
    total = exact.sum(dim=1, keepdim=True) + far_sum.clamp(min=0)
    return (exact @ value + trust * (far @ value)) / total
