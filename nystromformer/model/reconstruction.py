"""Output projections in closed form: each layer's states brought as near as they come to the exact model's.

A layer adds two projections to its input: that of attention's heads and that of the feed-forward part. With
Nyström attention both read what has drifted from the exact model, and every layer adds to it. So, one layer
after another, each projection (W, b) with input x and residual input h is moved by the least-squares
solution of

    minimise  Σ ‖ (W + ΔW) x + b + Δb + h  −  (W x* + b + h*) ‖²  +  ridge · mean diagonal · ‖ΔW‖²

over the tokens of some rows, where x* and h* are those of the same model with exact attention throughout. No
step of training, and no parameter more: only the projections' weights differ. The ridge holds them to the
trained ones, in every direction that the rows say little about.

Shapes: T tokens, I inputs and O outputs of a projection.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nystromformer.model.attention import padding_mask_of
from nystromformer.model.encoder import NystromformerLayer, NystromformerModel
from nystromformer.model.fitted_convolution import fit_convolutions

RIDGE = 0.3
"""Share of the mean diagonal that is added to it; measured on held-out rows, see docs/from_bert.md."""


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


@dataclass
class _Row:
    """One calibration row: its states in both models, without padding, (1, T, O)."""

    wanted: Tensor
    found: Tensor


@torch.no_grad()
def reconstruct(
    encoder: NystromformerModel,
    exact: NystromformerModel,
    batches: Sequence[Mapping[str, Tensor]],
    *,
    ridge: float = RIDGE,
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
    rows = [row for batch in batches for row in _rows(encoder, exact, batch)]
    errors = []
    for layer, wanted in zip(encoder.encoder.layer, exact.encoder.layer, strict=True):
        before = _error([_Row(wanted(r.wanted, None, None), layer(r.found, None, None)) for r in rows[:4]])
        rows = _fit_layer(layer, wanted, rows, ridge)  # type: ignore[arg-type]
        errors.append((before, _error(rows[:4])))
    encoder.train(was_training)
    return errors


def _rows(encoder: NystromformerModel, exact: NystromformerModel, batch: Mapping[str, Tensor]) -> list[_Row]:
    ids, mask, types = (
        None if batch.get(name) is None else batch[name].to(encoder.device)
        for name in ("input_ids", "attention_mask", "token_type_ids")
    )
    padding_BN = padding_mask_of(mask)
    both = [model.embeddings(ids, types, None, None) for model in (exact, encoder)]
    real = [slice(None) if padding_BN is None else ~padding_BN[row] for row in range(len(both[0]))]
    cut = [_Row(*(states[row][part][None] for states in both)) for row, part in enumerate(real)]
    return [row for row in cut if row.wanted.shape[1] > 0]


def _fit_layer(
    layer: NystromformerLayer, wanted: NystromformerLayer, rows: list[_Row], ridge: float
) -> list[_Row]:
    """Fit the two projections; the rows' states after the layer."""
    for part, inner, wanted_part, wanted_inner in (
        (layer.attention.output, _attention(layer), wanted.attention.output, _attention(wanted)),
        (layer.output, layer.intermediate, wanted.output, wanted.intermediate),
    ):
        inputs = [_Row(wanted_inner(row.wanted), inner(row.found)) for row in rows]
        sums = LeastSquares(part.dense)
        for row, x in zip(rows, inputs, strict=True):
            target = wanted_part.dense(x.wanted) + row.wanted
            sums.add(x.found[0], (target - row.found - part.dense(x.found))[0])
        sums.move(part.dense, ridge)
        rows = [
            _Row(wanted_part(x.wanted, row.wanted), part(x.found, row.found))
            for row, x in zip(rows, inputs, strict=True)
        ]
    return rows


def _attention(layer: NystromformerLayer) -> nn.Module:
    return _OfRow(layer.attention.self)


class _OfRow(nn.Module):
    """Self-attention of one row without padding."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, hidden_1NE: Tensor) -> Tensor:
        return self.attention(hidden_1NE, None, None)


class LeastSquares:
    """Normal equations of a projection's move, float64: (I + 1, I + 1) and (I + 1, O), the bias last."""

    def __init__(self, projection: nn.Linear) -> None:
        size, device = projection.in_features + 1, projection.weight.device
        self._gram_II = torch.zeros(size, size, dtype=torch.float64, device=device)
        self._right_IO = torch.zeros(size, projection.out_features, dtype=torch.float64, device=device)

    def add(self, x_TI: Tensor, missing_TO: Tensor) -> None:
        """The tokens of a row: what the projection reads, and what its output lacks."""
        x_TI = nn.functional.pad(x_TI.float(), (0, 1), value=1.0)
        self._gram_II += (x_TI.T @ x_TI).double()
        self._right_IO += (x_TI.T @ missing_TO.float()).double()

    def move(self, projection: nn.Linear, ridge: float) -> None:
        """Add the solution to the projection's weight and, if it has one, bias; nothing without any token."""
        diagonal = self._gram_II.diagonal()
        if not diagonal.any():
            return
        held = diagonal[:-1].mean() * ridge
        diagonal[:-1] += held
        solution_IO = torch.linalg.solve(self._gram_II, self._right_IO).to(projection.weight.dtype)
        projection.weight.add_(solution_IO[:-1].T)
        projection.bias.add_(solution_IO[-1])


def _error(rows: Sequence[_Row]) -> float:
    missing = sum(float((row.found - row.wanted).square().sum()) for row in rows)
    wanted = sum(float(row.wanted.square().sum()) for row in rows)
    return math.sqrt(missing / max(wanted, 1e-30))
