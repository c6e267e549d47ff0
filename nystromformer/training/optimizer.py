"""The optimizer; its rate is planned in `phases`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nystromformer.settings import TrainingSettings


def build_optimizer(model: nn.Module, settings: TrainingSettings) -> torch.optim.AdamW:
    """AdamW with decay on weight matrices alone, fused where the device has a fused step.

    Biases and the gains of norms have one dimension; decaying them pulls the network's scale towards
    zero without regularising anything.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups,
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        fused=trained[0].device.type in ("cpu", "cuda"),
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def update(optimizer: torch.optim.Optimizer, finite: Tensor) -> None:
    """One step of the optimizer where the gradient is `finite`, a bool on the device; else none.

    The fused step reads `found_inf` on the device, the way GradScaler tells it of an overflow in half
    precision: weights, moments and counts stay untouched, and the CPU does not wait for the answer.
    Where there is no fused step (MPS), it has to.
    """
    if optimizer.defaults.get("fused"):
        optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        optimizer.step()
    elif finite:
        optimizer.step()
