"""Losses of the heads, as transformers' heads define them, in float32.

Each is a mean over the targets of the batch. transformers' Trainer divides a batch into parts and passes
`num_items_in_batch`, the number of labels of all of them that are not −100; the mean is then over those,
so that the parts' losses and gradients add up to the whole batch's, however its targets are spread.

Shapes: B rows, C classes or columns.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedConfig

IGNORED = -100
"""The label of what is not predicted."""

Items = Tensor | int | None
"""`num_items_in_batch`."""


def cross_entropy(logits: Tensor, labels: Tensor, items: Items = None, ignored: int = IGNORED) -> Tensor:
    """Mean in nats over the labels that are not ignored; 0 where there are none, not NaN.

    Args:
        logits: (…, C).
        labels: as many class ids, in any shape and any integer type.

    Raises:
        ValueError: another number of labels, or labels that are no integers.
    """
    logits = logits.flatten(0, -2).float()
    if labels.numel() != len(logits):
        shape = tuple(labels.shape)
        raise ValueError(f"{len(logits)} predictions need as many class ids, got labels of shape {shape}")
    if labels.is_floating_point():
        raise ValueError(f"class ids must be integers, got labels of {labels.dtype}")
    labels = labels.reshape(-1).long()
    total = F.cross_entropy(logits, labels, ignore_index=ignored, reduction="sum")
    return total / _at_least_one((labels != ignored).sum() if items is None else items)


def can_choose_by(labels: Tensor) -> bool:
    """Whether the tokens that are predicted can be chosen by their labels.

    How many there are is known on a CPU alone: a GPU would be waited for, and a graph would break.
    """
    return labels.device.type == "cpu" and not torch.compiler.is_compiling()


def classification_loss(
    logits: Tensor, labels: Tensor, config: PreTrainedConfig, items: Items = None
) -> Tensor:
    """The loss of `config.problem_type`; None is inferred from the first labels and kept, as by BERT.

    Args:
        logits: (B, C).
        labels: for `single_label_classification` class ids, (B,); for `multi_label_classification` 0 and 1
            or probabilities, (B, C), whose loss is the mean over rows and classes, in nats, of each class by
            itself; for `regression` numbers, (B, C), whose loss is the mean of the squared differences. With
            one column, (B,) and (B, 1) are the same.
    """
    if config.problem_type is None:
        config.problem_type = _inferred(labels, config.num_labels)
    if config.problem_type == "single_label_classification":
        return cross_entropy(logits, labels, items)
    loss = F.mse_loss if config.problem_type == "regression" else F.binary_cross_entropy_with_logits
    # Every label counts, −100 too: it is a number like another.
    shape = tuple(logits.shape)
    if labels.shape != shape and not (shape[1] == 1 and labels.numel() == len(logits)):
        raise ValueError(f"labels of shape {shape} are needed, got {tuple(labels.shape)}")
    labels = labels.reshape(shape).float()  # so that nothing is broadcast
    total = loss(logits.float(), labels, reduction="sum")
    return total / _at_least_one(labels.numel() if items is None else items)


def _inferred(labels: Tensor, num_labels: int) -> str:
    if num_labels == 1:
        return "regression"
    whole = labels.dtype in (torch.long, torch.int)
    return "single_label_classification" if whole else "multi_label_classification"


def _at_least_one(items: Tensor | int) -> Tensor | int:
    return items.clamp(min=1) if isinstance(items, Tensor) else max(items, 1)
