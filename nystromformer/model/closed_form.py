"""What an approximation loses, given back in closed form: least squares on some rows, no step of training.

**The convolution.** A trained BERT's heads look at neighbours; segment-means cannot tell neighbours apart.
The residual convolution over the values can, so each head's kernel k is the least-squares solution of

    minimise  Σ ‖ (S − Ŝ) V − convolution(V, k) ‖²  +  ridge · mean diagonal · ‖k‖²

over some rows of the corpus, S exact attention and Ŝ its approximation, with its exact neighbours if it has
them; with `scale` also a factor on Ŝ V. The normal equations need only K × K sums a head, and S V comes from
fused attention: no n × n matrix is ever formed.

**The output projections.** A layer adds two projections to its input: that of attention's heads and that of
the feed-forward part. Both read what has drifted from the exact model, and every layer adds to it. So each
projection (W, b) with input x and residual input h is moved by the least-squares solution of

    minimise  Σ ‖ (W + ΔW) x + b + Δb + h  −  (W x* + b + h*) ‖²  +  ridge · mean diagonal · ‖ΔW‖²

over the tokens of some rows, where x* and h* are those of the same model with exact attention throughout. The
ridge holds them to the trained ones, in every direction that the rows say little about.

Either is fitted one layer after another, on the states that the fitted ones before it give.

Shapes: P problems, C unknowns, T samples; H heads, N positions, D head width, K kernel width, E hidden width.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from nystromformer.attention.projections import padding_mask_of
from nystromformer.attention.softmax import softmax_attention
from nystromformer.model.attention import NystromformerSelfAttention
from nystromformer.model.encoder import NystromformerLayer, NystromformerModel

RIDGE = 1e-3
"""Of the kernels; from 1e-4 to 1e-2 the error of the model is the same."""
PROJECTION_RIDGE = 0.3
"""Measured on held-out rows, see docs/from_bert.md."""


def fit_in_closed_form(encoder: NystromformerModel, batches: Sequence[Mapping[str, Tensor]], how: str) -> str:
    """Give back what the approximation loses, without training; what was done, in a line.

    Args:
        encoder: with Nyström attention and a convolution that holds nothing of value.
        batches: calibration rows, see `fit_convolutions` and `reconstruct`.
        how: `fitted` for the convolution's kernels, `scaled` for a factor on each head too, `reconstructed`
            for the output projections after the kernels.
    """
    exact = None
    if how == "reconstructed":
        for layer in encoder.encoder.layer:
            layer.get_submodule("attention.self.conv").weight.detach().zero_()  # type: ignore[operator]
        exact = with_exact_attention(encoder)
    errors = fit_convolutions(encoder, batches, scale=how == "scaled")
    rows = sum(len(batch["input_ids"]) for batch in batches)
    before, after = (sum(part) / len(errors) for part in zip(*errors, strict=True))
    done = (
        f"kernels {'fitted' if exact else how} in closed form on {rows} training rows: mean error of a "
        f"layer's attention {before:.3f}, then {after:.3f}"
    )
    if exact is None:
        return done
    states = reconstruct(encoder, exact, batches)
    return (
        f"{done}\n  output projections too, to the states of exact attention: error of the last one "
        f"{states[-1][1]:.3f} on those rows"
    )


def with_exact_attention(encoder: NystromformerModel) -> NystromformerModel:
    """A copy with the same weights, its convolution too, but exact attention, for inference."""
    config = copy.deepcopy(encoder.config)
    config.attention = "softmax"
    exact = NystromformerModel(config, add_pooling_layer=encoder.pooler is not None)
    exact.load_state_dict(encoder.state_dict())
    return exact.to(encoder.device).eval().requires_grad_(False)


def _embedded(encoder: NystromformerModel, batch: Mapping[str, Tensor]) -> Iterator[Tensor]:
    """What the first layer reads of each row, without its padding, (1, N, E)."""
    ids, mask, types = (
        None if batch.get(name) is None else batch[name].to(encoder.device)
        for name in ("input_ids", "attention_mask", "token_type_ids")
    )
    padding_BN = padding_mask_of(mask)
    for number, hidden_NE in enumerate(encoder.embeddings(ids, types, None, None)):
        real_NE = hidden_NE if padding_BN is None else hidden_NE[~padding_BN[number]]
        if len(real_NE):
            yield real_NE[None]


class LeastSquares:
    """Normal equations of P problems in C unknowns each, float64: (P, C, C) and (P, C, outputs)."""

    def __init__(self, problems: int, unknowns: int, outputs: int, device: torch.device) -> None:
        if device.type == "mps":  # has no float64
            device = torch.device("cpu")
        self._gram_PCC = torch.zeros(problems, unknowns, unknowns, dtype=torch.float64, device=device)
        self._right_PCO = torch.zeros(problems, unknowns, outputs, dtype=torch.float64, device=device)
        self._squares = 0.0  # of all targets

    def add(self, problem: int, columns_TC: Tensor, target_TO: Tensor) -> None:
        """Samples of one problem: what is combined, and what the combination is to be."""
        self._gram_PCC[problem] += (columns_TC.T @ columns_TC).to(self._gram_PCC)
        self._right_PCO[problem] += (columns_TC.T @ target_TO).to(self._gram_PCC)
        self._squares += float(target_TO.square().sum())

    def solve(self, ridge: float, *, free: int = 0) -> Tensor:
        """(P, C, outputs). A problem without any sample gets zeros.

        Args:
            ridge: the share of the mean diagonal that is added to it.
            free: how many of the last unknowns it leaves alone.
        """
        gram_PCC = self._gram_PCC.clone()
        diagonal_PC = gram_PCC.diagonal(dim1=1, dim2=2)
        held_PC = diagonal_PC[:, : diagonal_PC.shape[1] - free]
        empty_P1 = (diagonal_PC == 0).all(dim=1, keepdim=True)
        held_PC += ridge * held_PC.mean(dim=1, keepdim=True)
        diagonal_PC += empty_P1
        return torch.linalg.solve(gram_PCC, self._right_PCO)

    def left(self, solution_PCO: Tensor) -> tuple[float, float]:
        """Sum of squares of what the targets are without the solution, and of what it leaves of them."""
        quadratic = torch.einsum("pco,pcd,pdo->", solution_PCO, self._gram_PCC, solution_PCO)
        explained = float(2 * (solution_PCO * self._right_PCO).sum() - quadratic)
        return self._squares, max(self._squares - explained, 0.0)


# --- the convolution ----------------------------------------------------------------------------------


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
    rows = [row for batch in batches for row in _embedded(encoder, batch)]
    errors = []
    for layer in encoder.encoder.layer:
        errors.append(_fit_kernels(cast("NystromformerLayer", layer), rows, ridge, scale))
        rows = [layer(row, None, None) for row in rows]
    encoder.train(was_training)
    return errors


def _fit_kernels(
    layer: NystromformerLayer, rows: list[Tensor], ridge: float, scale: bool
) -> tuple[float, float]:
    attention, projection = layer.attention.self, layer.attention.output.dense
    if attention.mechanism != "nystrom" or attention.conv is None:
        raise ValueError("only Nyström attention with a convolution can be fitted")
    kernel_H1K1 = attention.conv.weight
    h, _, k, _ = kernel_H1K1.shape
    sums, exact_squares = LeastSquares(h, k + scale, 1, torch.device("cpu")), 0.0
    for row in rows:
        value, exact, nystrom = (x[0].float() for x in _attended(attention, row))
        exact_squares += float(exact.square().sum())
        for head in range(h):
            columns = [_shifted(value[head], k), *([nystrom[head].reshape(-1, 1)] if scale else [])]
            sums.add(head, torch.cat(columns, dim=1), (exact - nystrom)[head].reshape(-1, 1))
    solution_HC1 = sums.solve(ridge)
    solution_HC = solution_HC1[..., 0].to(kernel_H1K1)
    kernel_HK = solution_HC[:, :k]
    if scale:
        # A factor on the whole of a head's output, and the kernel divided by it.
        factor_H = (1 + solution_HC[:, k]).clamp(min=0.1)
        kernel_HK = kernel_HK / factor_H[:, None]
        projection.weight.mul_(factor_H.repeat_interleave(projection.in_features // h))
    kernel_H1K1.copy_(kernel_HK[:, None, :, None])
    before, after = (math.sqrt(left / max(exact_squares, 1e-30)) for left in sums.left(solution_HC1))
    return before, after


def _attended(attention: NystromformerSelfAttention, hidden_1NE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """V, S V and Ŝ V of one row, each (1, H, N, D)."""
    projections = (attention.query, attention.key, attention.value)
    query, key, value = (attention.in_heads(made(hidden_1NE)) for made in projections)
    return value, softmax_attention(query, key, value), attention.attend(query, key, value)


def _shifted(value_ND: Tensor, width: int) -> Tensor:
    """(N · D, K): column j holds the values j − (K − 1) / 2 positions on, zeros outside."""
    half = width // 2
    return F.pad(value_ND, (0, 0, half, half)).unfold(0, width, 1).reshape(-1, width)


# --- the output projections ---------------------------------------------------------------------------


@dataclass
class _Row:
    """One calibration row: its states in both models, without padding, (1, N, E)."""

    wanted: Tensor
    found: Tensor


@torch.no_grad()
def reconstruct(
    encoder: NystromformerModel,
    exact: NystromformerModel,
    batches: Sequence[Mapping[str, Tensor]],
    *,
    ridge: float = PROJECTION_RIDGE,
) -> list[tuple[float, float]]:
    """Fit the output projections of every layer; of the other weights none is touched.

    Args:
        encoder: with any attention; its convolution, if it has one, is best fitted before.
        exact: what its states are to be, `with_exact_attention` of it before anything was fitted.
        batches: calibration rows, each with `input_ids` and, where they matter, `attention_mask` and
            `token_type_ids`. They have to be of all lengths that the model is for: the projections serve
            rows that get exact attention too. Both models' states of all rows are kept at once.

    Returns:
        For each layer the relative error of its output before its projections were fitted, those of the
        layers before it being so, and after, ‖h − h*‖ / ‖h*‖.
    """
    was_training = encoder.training
    encoder.eval()
    rows = [
        _Row(*states)
        for batch in batches
        for states in zip(_embedded(exact, batch), _embedded(encoder, batch), strict=True)
    ]
    errors = []
    for layer, wanted in zip(encoder.encoder.layer, exact.encoder.layer, strict=True):
        before = _error([_Row(wanted(r.wanted, None, None), layer(r.found, None, None)) for r in rows[:4]])
        rows = _fit_projections(layer, wanted, rows, ridge)  # type: ignore[arg-type]
        errors.append((before, _error(rows[:4])))
    encoder.train(was_training)
    return errors


def _fit_projections(
    layer: NystromformerLayer, wanted: NystromformerLayer, rows: list[_Row], ridge: float
) -> list[_Row]:
    """Fit the two projections; the rows' states after the layer."""
    for part, inner, wanted_part, wanted_inner in (
        (layer.attention.output, _heads_of(layer), wanted.attention.output, _heads_of(wanted)),
        (layer.output, layer.intermediate, wanted.output, wanted.intermediate),
    ):
        projection = part.dense
        inputs = [_Row(wanted_inner(row.wanted), inner(row.found)) for row in rows]
        sums = LeastSquares(1, projection.in_features + 1, projection.out_features, projection.weight.device)
        for row, x in zip(rows, inputs, strict=True):
            missing = wanted_part.dense(x.wanted) + row.wanted - row.found - projection(x.found)
            sums.add(0, F.pad(x.found[0].float(), (0, 1), value=1.0), missing[0].float())
        move_CO = sums.solve(ridge, free=1)[0].to(projection.weight)  # the bias last
        projection.weight.add_(move_CO[:-1].T)
        projection.bias.add_(move_CO[-1])
        rows = [
            _Row(wanted_part(x.wanted, row.wanted), part(x.found, row.found))
            for row, x in zip(rows, inputs, strict=True)
        ]
    return rows


def _heads_of(layer: NystromformerLayer) -> Callable[[Tensor], Tensor]:
    return lambda hidden_1NE: layer.attention.self(hidden_1NE, None, None)


def _error(rows: Sequence[_Row]) -> float:
    missing = sum(float((row.found - row.wanted).square().sum()) for row in rows)
    wanted = sum(float(row.wanted.square().sum()) for row in rows)
    return math.sqrt(missing / max(wanted, 1e-30))
