"""How well a model's Nyström attention does on a batch: each layer's and head's error, and its branch.

Shapes: L layers, B rows, H heads, N positions, D head width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nystromformer.attention.diagnostics import attention_error
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
    layers = [module for module in model.modules() if isinstance(module, NystromformerSelfAttention)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no layer of this project's attention")
    if layers[0].mechanism not in ("nystrom", "softmax"):
        raise ValueError(
            f"{layers[0].mechanism} attention has no landmarks: the error is defined for nystrom attention"
        )
    errors: list[Tensor] = []
    exact: list[Tensor] = []

    def look(module: NystromformerSelfAttention, inputs: tuple[Any, ...]) -> None:
        hidden_states, padding_mask = inputs[0], inputs[1]
        errors.append(_error_of(module, hidden_states, padding_mask))
        b, n = hidden_states.shape[:2]
        counts = [n] * b if padding_mask is None else (~padding_mask).sum(1).tolist()
        exact.append(torch.tensor([module.branch(count) == "exact" for count in counts]))

    with _looking(model, layers, look):
        model(**{name: tensor.to(model.device) for name, tensor in batch.items()})
    return ApproximationError(torch.stack(errors), torch.stack(exact).to(errors[0].device))


def _error_of(
    module: NystromformerSelfAttention, hidden_states: Tensor, padding_mask: Tensor | None
) -> Tensor:
    query_BHND, key_BHND = (
        projection(hidden_states).unflatten(-1, (module.num_heads, -1)).transpose(1, 2)
        for projection in (module.query, module.key)
    )
    if module.mechanism == "softmax":
        return torch.zeros(query_BHND.shape[:2], device=query_BHND.device)
    return attention_error(
        query_BHND,
        key_BHND,
        num_landmarks=module.num_landmarks,
        key_padding_mask=padding_mask,
        pinv_iterations=module.pinv_iterations,
        landmarks=module.landmarks,
    )


@contextlib.contextmanager
def _looking(
    model: PreTrainedModel, layers: list[NystromformerSelfAttention], look: Callable[..., None]
) -> Iterator[None]:
    """`look` is called before each layer's attention, in a model that does not train for as long."""
    hooks = [layer.register_forward_pre_hook(look) for layer in layers]
    was_training = model.training
    model.eval()
    try:
        with torch.compiler.set_stance("force_eager"):  # a compiled forward would pass the hooks by
            yield
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
