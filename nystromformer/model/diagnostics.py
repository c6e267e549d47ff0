"""What a model's attention is on a batch: a layer's factors or matrix to look at, and each layer's error.

Shapes: L layers, B rows, H heads, N positions, n real tokens of a row, D head width, M landmarks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nystromformer.attention.diagnostics import Factors, attention_error, nystrom_factors
from nystromformer.model.attention import NystromformerSelfAttention


@dataclass(frozen=True)
class ApproximationError:
    """‖S − Ŝ‖ / ‖S‖ in the Frobenius norm, S the exact attention matrix and Ŝ what stands for it."""

    error_LBH: Tensor
    """At least float32. 0 where a row takes exact attention, and in a row of padding alone."""
    exact_LB: Tensor
    """Which rows take the exact branch in which layer, bool; see `NystromformerSelfAttention.branch`."""

    @property
    def mean_LH(self) -> Tensor:
        """Mean over the rows that are approximated; NaN in a layer without any."""
        share_LB = (~self.exact_LB).to(self.error_LBH.dtype)
        return (self.error_LBH * share_LB[..., None]).sum(1) / share_LB.sum(1, keepdim=True)


@torch.no_grad()
def approximation_error(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> ApproximationError:
    """The error of each layer's attention matrix, on the queries and keys that the layer computes.

    One forward pass without dropout. A row's matrix is that of its real tokens. One row's one head is
    formed at a time, n × n numbers and as many for its approximation, so the cost is that of exact
    attention whose matrix is stored: take a few rows.

    Args:
        model: any model of this project, with `nystrom` or `softmax` attention.
        batch: what the model's forward takes, `input_ids` and so on; it is moved to the model's device.

    Raises:
        ValueError: the model is none of this project's, or its attention forms no approximation of
            the softmax matrix by landmarks.
    """
    layers = _layers_of(model)
    errors: list[Tensor] = []
    exact: list[Tensor] = []

    def look(module: NystromformerSelfAttention, inputs: tuple[Any, ...]) -> None:
        hidden_states, padding_mask = inputs[0], inputs[1]
        errors.append(_error_of(module, hidden_states, padding_mask))
        b, n = hidden_states.shape[:2]
        counts = [n] * b if padding_mask is None else (~padding_mask).sum(1).tolist()
        exact.append(torch.tensor([module.branch(count) == "exact" for count in counts]))

    _look(model, batch, layers, look)
    return ApproximationError(torch.stack(errors), torch.stack(exact).to(errors[0].device))


def _error_of(
    module: NystromformerSelfAttention, hidden_states: Tensor, padding_mask: Tensor | None
) -> Tensor:
    query_BHND, key_BHND = queries_and_keys(module, hidden_states)
    if module.attend.is_exact(query_BHND.shape[2]):
        return torch.zeros(query_BHND.shape[:2], device=query_BHND.device)
    options = module.attend.approximation(query_BHND.shape[2]) or {}
    return attention_error(query_BHND, key_BHND, key_padding_mask=padding_mask, **options)


@torch.no_grad()
def attention_factors(
    model: PreTrainedModel, batch: Mapping[str, Tensor], layer: int, row: int = 0
) -> Factors:
    """F̃, Z and B̃ of one layer for the real tokens of one row: Ŝ = F̃ Z B̃ (paper, equation 13).

    One forward pass without dropout; the factors are N · M numbers a head. The residual convolution that
    the layer adds is not in them.

    Args:
        model: any model of this project, with `nystrom` or `softmax` attention.
        batch: what the model's forward takes, `input_ids` and so on; it is moved to the model's device.
        layer: counted from 0; negative from the last.
        row: of the batch, likewise.

    Returns:
        (1, H, n, M), (1, H, M, M) and (1, H, M, n), at least float32. Where the layer computes exact
        attention for the row: S, I and I.

    Raises:
        ValueError: as `approximation_error`.
        IndexError: there is no such layer or row, or the row is padding alone.
    """
    module, query_1HnD, key_1HnD = _projections(model, batch, layer, row)
    return _factors(module, query_1HnD, key_1HnD)


@torch.no_grad()
def attention_matrix(
    model: PreTrainedModel,
    batch: Mapping[str, Tensor],
    layer: int,
    head: int,
    row: int = 0,
    exact: bool = False,
) -> Tensor:
    """One head's Ŝ for the real tokens of one row, or with `exact` the S that it stands for; (n, n).

    Row i holds what token i takes of each token. Ŝ's rows sum to about 1, and its entries can be
    negative. The other arguments and errors are those of `attention_factors`.
    """
    module, query_1HnD, key_1HnD = _projections(model, batch, layer, row)
    _check_index("head", head, module.num_heads)
    query_11nD, key_11nD = (x[:, head][:, None] for x in (query_1HnD, key_1HnD))
    if exact:
        return nystrom_factors(query_11nD, key_11nD, num_landmarks=query_11nD.shape[2]).f_BHNM[0, 0]
    f_BHNM, z_BHMM, b_BHMN = _factors(module, query_11nD, key_11nD)
    return (f_BHNM @ z_BHMM @ b_BHMN)[0, 0]


def _projections(
    model: PreTrainedModel, batch: Mapping[str, Tensor], layer: int, row: int
) -> tuple[NystromformerSelfAttention, Tensor, Tensor]:
    """The layer with the row's queries and keys at real tokens, (1, H, n, D)."""
    layers = _layers_of(model)
    _check_index("layer", layer, len(layers))
    found: list[tuple[Tensor, Tensor]] = []

    def look(module: NystromformerSelfAttention, inputs: tuple[Any, ...]) -> None:
        hidden_states, padding_mask = inputs[0], inputs[1]
        _check_index("row", row, len(hidden_states))
        tokens = hidden_states[row]
        if padding_mask is not None:
            tokens = tokens[~padding_mask[row]]
        if not len(tokens):
            raise IndexError(f"row={row} is padding alone: it has no attention")
        found.append(queries_and_keys(module, tokens[None]))

    _look(model, batch, [layers[layer]], look)
    return layers[layer], *found[0]


def _factors(module: NystromformerSelfAttention, query_1HnD: Tensor, key_1HnD: Tensor) -> Factors:
    """What the layer multiplies for one row without padding, but for exact neighbours."""
    options = module.attend.approximation(query_1HnD.shape[2]) or {}
    return nystrom_factors(query_1HnD, key_1HnD, **{**options, "neighbours": None})


def _layers_of(model: PreTrainedModel) -> list[NystromformerSelfAttention]:
    layers = [module for module in model.modules() if isinstance(module, NystromformerSelfAttention)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no layer of this project's attention")
    if layers[0].attend.approximation(1) is None:
        raise ValueError(
            f"{layers[0].mechanism} attention has no landmarks: the error is defined for nystrom attention"
        )
    return layers


def _check_index(name: str, index: int, count: int) -> None:
    if not -count <= index < count:
        raise IndexError(f"{name}={index}: there are {count}, counted from 0")


def queries_and_keys(module: NystromformerSelfAttention, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
    """(B, H, N, D) each."""
    return module.in_heads(module.query(hidden_states)), module.in_heads(module.key(hidden_states))


def _look(
    model: PreTrainedModel,
    batch: Mapping[str, Tensor],
    layers: list[NystromformerSelfAttention],
    look: Callable[..., None],
) -> None:
    """Run the model without training it; `look` is called before the attention of each of the layers."""
    hooks = [layer.register_forward_pre_hook(look) for layer in layers]
    was_training = model.training
    model.eval()
    try:
        with torch.compiler.set_stance("force_eager"):  # a compiled forward would pass the hooks by
            model(**{name: tensor.to(model.device) for name, tensor in batch.items()})
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
