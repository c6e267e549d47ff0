"""One optimizer step over one global batch."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from nystromformer.data.layout import Batch
from nystromformer.model import NystromformerConfig
from nystromformer.model.heads import IGNORED
from nystromformer.training.devices import numbers_on, on_device
from nystromformer.training.flops import training_flops
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

    mlm_loss: Tensor
    """Share of the mean over the global batch's predicted tokens, nats; 0 for a skipped step."""
    sop_loss: Tensor
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
            mlm_loss=self.mlm_loss + later.mlm_loss,
            sop_loss=self.sop_loss + later.sop_loss,
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
    config: NystromformerConfig,
    optimizer: torch.optim.Optimizer,
    micro_batches: list[Batch],
    accelerator: Accelerator,
    autocast: torch.autocast,
    *,
    gradient_clipping: float | None,
) -> StepFigures:
    """Forward and backward over the micro-batches, then one step of the optimizer.

    The loss is the mean over the predicted tokens of the whole global batch. Averaging the means of
    micro-batches or processes instead would weigh tokens of short rows more, and would make the
    result depend on how the batch is cut.

    A step whose gradient is not finite changes neither weights nor moments; the device decides that
    itself, so that the CPU need not wait to know.
    """
    targets = sum(predicted_tokens(batch) for batch in micro_batches)
    rows = sum(len(batch["input_ids"]) for batch in micro_batches)
    lengths = torch.cat([batch["attention_mask"].sum(1) for batch in micro_batches])
    totals = numbers_on(accelerator.device, [targets, rows])
    all_targets, all_rows = accelerator.reduce(totals, "sum").unbind()

    mlm_sum = torch.zeros((), device=accelerator.device)
    sop_sum = torch.zeros((), device=accelerator.device)
    for batch, is_last in _with_last(micro_batches):
        in_batch = predicted_tokens(batch)
        batch = on_device(batch, accelerator.device)
        # Processes exchange gradients once a step, with the last micro-batch.
        with contextlib.nullcontext() if is_last else accumulating(model):
            with autocast:
                output = model(**batch)
            mlm_loss = output.mlm_loss * (in_batch / all_targets)
            sop_loss = output.sop_loss * (len(batch["input_ids"]) / all_rows)
            # The exchange averages over the processes, and these losses are shares of a sum.
            accelerator.backward((mlm_loss + sop_loss) * accelerator.num_processes)
        mlm_sum += mlm_loss.detach()
        sop_sum += sop_loss.detach()

    named = with_gradient(model)
    parameters = list(named.values())
    norms = gradient_norms(parameters)
    norm = torch.linalg.vector_norm(norms)
    if gradient_clipping is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clipping, norm, foreach=True)
    finite = norm.isfinite()
    update(optimizer, finite)
    optimizer.zero_grad(set_to_none=True)
    return StepFigures(
        mlm_loss=torch.where(finite, mlm_sum, 0.0),
        sop_loss=torch.where(finite, sop_sum, 0.0),
        tokens=int(lengths.sum()),
        positions=sum(batch["input_ids"].numel() for batch in micro_batches),
        flops=training_flops(config, lengths.numpy(), targets),
        gradient_norm=norm,
        fault=GradientFault(last_fault(norms, finite), list(named)),
        taken=finite.float(),
    )


def predicted_tokens(batch: Batch) -> int:
    """How many tokens a batch predicts, the empty slots aside; where it still is in the CPU's memory."""
    return int((batch["prediction_labels"] != IGNORED).sum())


def grouped(micro_batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    """The micro-batches of one optimizer step at a time."""
    while group := list(itertools.islice(micro_batches, size)):
        yield group


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


def _with_last(batches: list[Batch]) -> Iterator[tuple[Batch, bool]]:
    for number, batch in enumerate(batches, start=1):
        yield batch, number == len(batches)
