"""One optimizer step over one global batch."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from nystromformer.data.layout import Batch, parts
from nystromformer.training.devices import numbers_on, on_device
from nystromformer.training.graphs import Graphs
from nystromformer.training.objective import Objective
from nystromformer.training.optimizer import update
from nystromformer.training.parallel import accumulating, whole


@dataclass(frozen=True)
class GradientFault:
    """Where a step's gradient stopped being finite."""

    number: Tensor
    """The place in `parameters` of the last one that is not finite, −1 if all are; on the device."""
    parameters: list[str]
    """Names of the parameters that had a gradient."""


@dataclass
class StepFigures:
    """Sums over this process's share of one or more steps; tensors stay on the device.

    Reading a tensor makes the CPU wait for the device, so the loop reads them only when it logs.
    """

    losses: list[Tensor]
    """Of each loss, the share of its mean over the global batch; 0 for a skipped step."""
    tokens: int
    """Real tokens."""
    positions: int
    """Real tokens and padding."""
    flops: float
    """Model FLOPs of the real tokens, forward and backward; see `flops`."""
    gradient_norm: Tensor
    """Of the last step, before clipping."""
    fault: GradientFault
    """Of the last step."""
    taken: Tensor
    """How many steps were taken, not skipped."""
    steps: int = 1

    def __add__(self, later: StepFigures) -> StepFigures:
        return StepFigures(
            losses=[mine + theirs for mine, theirs in zip(self.losses, later.losses, strict=True)],
            tokens=self.tokens + later.tokens,
            positions=self.positions + later.positions,
            flops=self.flops + later.flops,
            gradient_norm=later.gradient_norm,
            fault=later.fault,
            taken=self.taken + later.taken,
            steps=self.steps + later.steps,
        )


def train_step(
    model: torch.nn.Module,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    micro_batches: list[Batch],
    accelerator: Accelerator,
    autocast: torch.autocast,
    *,
    gradient_clipping: float | None,
    graphs: Graphs | None = None,
) -> StepFigures:
    """Forward and backward over the micro-batches, then one step of the optimizer.

    Each loss is the mean over the whole global batch. Averaging the means of micro-batches or processes
    instead would weigh tokens of short rows more, and would make the result depend on how the batch is cut.

    A step whose gradient is not finite changes neither weights nor moments; the device decides that
    itself, so that the CPU need not wait to know.

    Args:
        graphs: replays the passes of micro-batches of a known shape; on one process alone.
    """
    counts = [objective.counts(batch) for batch in micro_batches]
    own = [sum(of_loss) for of_loss in zip(*counts, strict=True)]
    masks = [mask for batch in micro_batches for mask in parts(batch, "attention_mask")]
    lengths = torch.cat([mask.sum(-1).flatten() for mask in masks])
    totals = accelerator.reduce(numbers_on(accelerator.device, own), "sum")

    def compute(batch: Batch, weights: Tensor) -> Tensor:
        with autocast:
            means = objective.means(model, batch)
        shares = torch.stack(means) * weights
        # The exchange averages over the processes, and these losses are shares of a sum.
        accelerator.backward(shares.sum() * accelerator.num_processes)
        return shares.detach()

    sums = torch.zeros(len(own), device=accelerator.device)
    for number, (batch, in_batch) in enumerate(zip(micro_batches, counts, strict=True), start=1):
        batch = on_device(batch, accelerator.device)
        weights = numbers_on(accelerator.device, in_batch) * totals.reciprocal()
        # Processes exchange gradients once a step, with the last micro-batch.
        with contextlib.nullcontext() if number == len(micro_batches) else accumulating(model):
            sums += compute(batch, weights) if graphs is None else graphs(compute, batch, weights)

    named = with_gradient(model)
    parameters = list(named.values())
    norms = gradient_norms(parameters)
    norm = torch.linalg.vector_norm(norms)
    if gradient_clipping is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clipping, norm, foreach=True)
    finite = norm.isfinite()
    update(optimizer, finite)
    optimizer.zero_grad(set_to_none=graphs is None)
    return StepFigures(
        losses=list(torch.where(finite, sums, 0.0)),
        tokens=int(lengths.sum()),
        positions=sum(mask.numel() for mask in masks),
        flops=objective.flops(lengths.numpy(), own),
        gradient_norm=norm,
        fault=GradientFault(last_fault(norms, finite), list(named)),
        taken=finite.float(),
    )


def with_gradient(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that have a gradient, under their names in the model itself, DDP around it or not."""
    return {
        name.removeprefix("module."): parameter
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def gradient_norms(parameters: list[torch.nn.Parameter]) -> Tensor:
    """The norm of each parameter's gradient, (parameters,), on the device."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return whole(torch.stack(torch._foreach_norm(gradients)))


def last_fault(norms: Tensor, finite: Tensor) -> Tensor:
    """The number of the last norm that is not finite, −1 where `finite`, on the device.

    The backward pass visits parameters from the last to the first and carries NaN along, so the last
    one is where it began. Norms that are finite alone can overflow together: then it is the largest.
    """
    numbers = torch.arange(len(norms), device=norms.device)
    last = torch.where(norms.isfinite(), -1, numbers).amax()
    last = torch.where(last >= 0, last, norms.argmax())
    return torch.where(finite, -1, last)
