"""One optimizer step over one global batch."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from nystromformer.model.heads import IGNORED

Batch = dict[str, Tensor]


@dataclass
class StepFigures:
    """Sums over this process's share of one or more steps; tensors stay on the device.

    Reading a tensor makes the CPU wait for the device, so the loop reads them only when it logs.
    """

    mlm_loss: Tensor
    """Share of the mean over the global batch's predicted tokens, nats."""
    sop_loss: Tensor
    tokens: int
    """Real tokens."""
    gradient_norm: Tensor
    """Of the last step, before clipping."""
    steps: int = 1

    def __add__(self, later: StepFigures) -> StepFigures:
        return StepFigures(
            self.mlm_loss + later.mlm_loss,
            self.sop_loss + later.sop_loss,
            self.tokens + later.tokens,
            later.gradient_norm,
            self.steps + later.steps,
        )


def train_step(
    model: torch.nn.Module,
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
    """
    targets = sum(int((batch["labels"] != IGNORED).sum()) for batch in micro_batches)
    rows = sum(len(batch["labels"]) for batch in micro_batches)
    tokens = sum(int(batch["attention_mask"].sum()) for batch in micro_batches)
    totals = torch.tensor([targets, rows], device=accelerator.device, dtype=torch.float32)
    all_targets, all_rows = accelerator.reduce(totals, "sum").unbind()

    mlm_sum = torch.zeros((), device=accelerator.device)
    sop_sum = torch.zeros((), device=accelerator.device)
    for batch, is_last in _with_last(micro_batches):
        in_batch = int((batch["labels"] != IGNORED).sum())
        batch = {name: tensor.to(accelerator.device, non_blocking=True) for name, tensor in batch.items()}
        # Processes exchange gradients once a step, with the last micro-batch.
        with contextlib.nullcontext() if is_last else accelerator.no_sync(model):
            with autocast:
                output = model(**batch)
            mlm_loss = output.mlm_loss * (in_batch / all_targets)
            sop_loss = output.sop_loss * (len(batch["labels"]) / all_rows)
            # The exchange averages over the processes, and these losses are shares of a sum.
            accelerator.backward((mlm_loss + sop_loss) * accelerator.num_processes)
        mlm_sum += mlm_loss.detach()
        sop_sum += sop_loss.detach()

    limit = float("inf") if gradient_clipping is None else gradient_clipping
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), limit, foreach=True)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return StepFigures(mlm_sum, sop_sum, tokens, norm)


def grouped(micro_batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    """The micro-batches of one optimizer step at a time."""
    while group := list(itertools.islice(micro_batches, size)):
        yield group


def _with_last(batches: list[Batch]) -> Iterator[tuple[Batch, bool]]:
    for number, batch in enumerate(batches, start=1):
        yield batch, number == len(batches)
