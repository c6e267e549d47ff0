"""Losses of the heads, as transformers' heads define them, in float32.

Each is a mean over the targets of the batch. transformers' Trainer divides a batch into parts and passes
`num_items_in_batch`, the number of labels of all of them that are not −100; the mean is then over those,
so that the parts' losses and gradients add up to the whole batch's, however its targets are spread.

Shapes: B rows, C classes or columns.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
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
    logits = logits.flatten(0, -2)
    if labels.numel() != len(logits):
        shape = tuple(labels.shape)
        raise ValueError(f"{len(logits)} predictions need as many class ids, got labels of shape {shape}")
    if labels.is_floating_point():
        raise ValueError(f"class ids must be integers, got labels of {labels.dtype}")
    labels = labels.reshape(-1).long()
    if _fills_a_gpu(logits):
        total = _InParts.apply(logits, labels, ignored)
    else:
        total = F.cross_entropy(logits.float(), labels, ignore_index=ignored, reduction="sum")
    return total / _at_least_one((labels != ignored).sum() if items is None else items)


TOGETHER = 2**26
"""Logits of which `_InParts` makes float32 copies at once, 256 MB each."""


def _fills_a_gpu(logits: Tensor) -> bool:
    """Whether float32 copies of all logits would take much of a GPU's memory.

    A compiled graph makes none, and a transform of functions cannot see into `_InParts`.
    """
    return (
        logits.device.type != "cpu"
        and logits.numel() > TOGETHER
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
    )


class _InParts(torch.autograd.Function):
    """Σ −log softmax(logits)[label] in float32, some rows at a time.

    PyTorch's own keeps the logits' logarithms of softmax, and of half-precision ones a float32 copy is made
    first, and another for the gradient. This keeps the logits as they are, and a number a row; it has no
    second derivative. R rows, C classes.
    """

    @staticmethod
    def forward(ctx: Any, logits_RC: Tensor, labels_R: Tensor, ignored: int) -> Tensor:
        counted_R = labels_R != ignored
        place_R = labels_R.where(counted_R, 0)
        log_sum_R = torch.cat([part.float().logsumexp(dim=1) for part in _parts(logits_RC)])
        ctx.save_for_backward(logits_RC, place_R, counted_R, log_sum_R)
        loss_R = log_sum_R - logits_RC.gather(1, place_R[:, None])[:, 0].float()
        return loss_R.where(counted_R, 0.0).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        logits_RC, place_R, counted_R, log_sum_R = ctx.saved_tensors
        grad_RC, begin = torch.empty_like(logits_RC), 0
        for part_PC in _parts(logits_RC):
            rows = slice(begin, begin := begin + len(part_PC))
            own_PC = (part_PC.float() - log_sum_R[rows, None]).exp_()  # the softmax
            own_PC.scatter_add_(1, place_R[rows, None], own_PC.new_full((len(part_PC), 1), -1.0))
            # What is ignored may be no number.
            grad_RC[rows] = own_PC.mul_(grad).masked_fill_(~counted_R[rows, None], 0.0)
        return grad_RC, None, None


def _parts(logits_RC: Tensor) -> tuple[Tensor, ...]:
    return logits_RC.split(max(TOGETHER // logits_RC.shape[1], 1))


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
