"""The residual convolution in closed form: what landmarks blur, given back without a step of training.

A trained BERT's heads look at neighbours; segment-means cannot tell neighbours apart. The convolution over
the values can, so each head's kernel k is set to the least-squares solution of

    minimise  Σ ‖ (S − Ŝ) V − convolution(V, k) ‖²  +  ridge · mean diagonal · ‖k‖²

over some rows of the corpus, S exact attention and Ŝ its approximation, with its exact neighbours if it has
them; with `scale` also a factor on Ŝ V. Layers are fitted one after another, each on the hidden states that
the fitted ones before it give.

The normal equations need only K × K sums a head, and S V comes from fused attention: no n × n matrix is
ever formed.

Shapes: B rows, H heads, N positions, D head width, K kernel width, C = K or K + 1 unknowns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nystromformer.attention.composed import composed_nystrom_attention
from nystromformer.attention.softmax import softmax_attention
from nystromformer.model.attention import NystromformerSelfAttention, padding_mask_of
from nystromformer.model.encoder import NystromformerModel

RIDGE = 1e-3
"""Share of the mean diagonal that is added to it; from 1e-4 to 1e-2 the error of the model is the same."""


@torch.no_grad()
def fit_convolutions(
    encoder: NystromformerModel,
    batches: Sequence[Mapping[str, Tensor]],
    *,
    ridge: float = RIDGE,
    scale: bool = False,
) -> list[tuple[float, float]]:
    """Set every layer's kernels; the other weights stay as they are, but for `scale`.

    Args:
        encoder: with Nyström attention and a convolution; what its kernels hold is overwritten.
        batches: calibration rows, each with `input_ids` and, where they matter, `attention_mask` and
            `token_type_ids`. A few thousand tokens are enough; they are moved to the model's device.
        scale: also fit a factor on each head's Ŝ V and fold it into the output projection, which changes
            the model for short rows too.

    Returns:
        For each layer the error of its attention's output before and after, ‖(S − Ŝ)V − fit‖ / ‖S V‖.

    Raises:
        ValueError: the encoder has no Nyström attention with a convolution.
    """
    was_training = encoder.training
    encoder.eval()
    device = encoder.device
    states: list[tuple[Tensor, Tensor | None]] = []
    for batch in batches:
        ids, mask, types = (
            None if batch.get(name) is None else batch[name].to(device)
            for name in ("input_ids", "attention_mask", "token_type_ids")
        )
        states.append((encoder.embeddings(ids, types, None, None), padding_mask_of(mask)))
    errors = []
    for layer in encoder.encoder.layer:
        attention: NystromformerSelfAttention = layer.get_submodule("attention.self")  # type: ignore[assignment]
        output: torch.nn.Linear = layer.get_submodule("attention.output.dense")  # type: ignore[assignment]
        errors.append(_fit_layer(attention, output, states, ridge, scale))
        states = [(layer(hidden, pads, attention.attend.shared(pads)), pads) for hidden, pads in states]
    encoder.train(was_training)
    return errors


def _fit_layer(
    attention: NystromformerSelfAttention,
    output: torch.nn.Linear,
    states: list[tuple[Tensor, Tensor | None]],
    ridge: float,
    scale: bool,
) -> tuple[float, float]:
    if attention.mechanism != "nystrom" or attention.conv is None:
        raise ValueError("only Nyström attention with a convolution can be fitted")
    h, _, k, _ = attention.conv.weight.shape
    sums = NormalEquations(h, k + scale, attention.conv.weight.device)
    for hidden, padding_BN in states:
        for row in range(len(hidden)):
            real = slice(None) if padding_BN is None else ~padding_BN[row]
            _add_row(attention, sums, hidden[row][real][None], scale)
    solution_HC = sums.solve(ridge)
    kernel_HK = solution_HC[:, :k]
    if scale:
        # A factor on the whole of a head's output, and the kernel divided by it.
        factor_H = (1 + solution_HC[:, k]).clamp(min=0.1)
        kernel_HK = kernel_HK / factor_H[:, None]
        columns = factor_H.repeat_interleave(output.in_features // h)
        output.weight.mul_(columns.to(output.weight.dtype))
    attention.conv.weight.copy_(kernel_HK[:, None, :, None])
    return sums.errors(solution_HC)


def _add_row(
    attention: NystromformerSelfAttention, sums: NormalEquations, hidden_1NE: Tensor, scale: bool
) -> None:
    """The residual of one row's real tokens into the sums, head by head."""
    assert attention.conv is not None
    h, _, k, _ = attention.conv.weight.shape
    if hidden_1NE.shape[1] == 0:
        return
    query, key, value = (
        projection(hidden_1NE).unflatten(-1, (h, -1)).transpose(1, 2)
        for projection in (attention.query, attention.key, attention.value)
    )
    exact_BHND = softmax_attention(query, key, value)
    nystrom_BHND = composed_nystrom_attention(
        query,
        key,
        value,
        **(attention.attend.approximation(hidden_1NE.shape[1]) or {}),
    )
    for head in range(h):
        columns = [_shifted(value[0, head].float(), k)]
        if scale:
            columns.append(nystrom_BHND[0, head].float().reshape(-1, 1))
        residual = (exact_BHND - nystrom_BHND)[0, head].float()
        sums.add(head, torch.cat(columns, dim=1), residual.reshape(-1), exact_BHND[0, head].float())


def _shifted(value_ND: Tensor, width: int) -> Tensor:
    """(N · D, K): column j holds the values j − (K − 1) / 2 positions on, zeros outside."""
    half = width // 2
    return F.pad(value_ND, (0, 0, half, half)).unfold(0, width, 1).reshape(-1, width)


class NormalEquations:
    """Sums of a least-squares problem for each head, (H, C, C) and (H, C), in float64 on the CPU."""

    def __init__(self, heads: int, unknowns: int, device: torch.device) -> None:
        self._gram_HCC = torch.zeros(heads, unknowns, unknowns, dtype=torch.float64)
        self._right_HC = torch.zeros(heads, unknowns, dtype=torch.float64)
        self._squares = torch.zeros(2, dtype=torch.float64)  # of the residual, of exact attention
        self._device = device

    def add(self, head: int, columns: Tensor, residual: Tensor, exact: Tensor) -> None:
        self._gram_HCC[head] += (columns.T @ columns).double().cpu()
        self._right_HC[head] += (columns.T @ residual).double().cpu()
        self._squares += torch.stack([residual.square().sum(), exact.square().sum()]).double().cpu()

    def solve(self, ridge: float) -> Tensor:
        """(H, C) on the model's device. A head without any data gets zeros."""
        diagonal_H = self._gram_HCC.diagonal(dim1=1, dim2=2).mean(dim=1)
        diagonal_H = torch.where(diagonal_H > 0, diagonal_H * ridge, 1.0)
        identity = torch.eye(self._gram_HCC.shape[1], dtype=torch.float64)
        gram = self._gram_HCC + diagonal_H[:, None, None] * identity
        return torch.linalg.solve(gram, self._right_HC).float().to(self._device)

    def errors(self, solution_HC: Tensor) -> tuple[float, float]:
        """Relative error without the solution and with it."""
        x = solution_HC.double().cpu()
        residual, exact = self._squares.tolist()
        explained = 2 * (x * self._right_HC).sum() - torch.einsum("hc,hcd,hd->", x, self._gram_HCC, x)
        after = max(residual - float(explained), 0.0)
        scale = max(exact, 1e-30)
        return (residual / scale) ** 0.5, (after / scale) ** 0.5
