"""Validation on held-out examples, always the same ones with the same masks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from accelerate import Accelerator

from nystromformer.data.layout import Batch
from nystromformer.model import NystromformerForPreTraining
from nystromformer.model.heads import IGNORED
from nystromformer.training.devices import on_device


@dataclass
class ValidationResult:
    """Means over the predicted tokens (MLM) and over the rows (sentence order); losses in nats."""

    mlm_loss: float
    mlm_accuracy: float
    sop_loss: float
    sop_accuracy: float
    unigram_loss: float
    """Loss on the same tokens of the training split's unigram distribution: knows words, no context."""
    tokens: int
    """Predicted tokens."""
    rows: int

    def event(self, step: int) -> dict[str, float | str]:
        return {"kind": "validation", "step": step, **asdict(self)}


@torch.no_grad()
def validate(
    model: NystromformerForPreTraining,
    batches: Iterable[tuple[Batch, bool]],
    unigram_loss_V: torch.Tensor,
    accelerator: Accelerator,
    autocast: torch.autocast,
) -> ValidationResult:
    """Losses and accuracies over all processes' batches.

    Nothing that draws random numbers here moves the training's own: a validation more or less leaves
    the run as it is.

    Args:
        batches: each with whether it counts.
        unigram_loss_V: loss of predicting each token by its frequency, from `unigram_losses`.
    """
    was_training = model.training
    model.eval()
    # Sums of: MLM loss, MLM hits, unigram loss, tokens, SOP loss, SOP hits, rows. float64, because
    # a float32 count stops growing at 16.7 million.
    sums = torch.zeros(7, dtype=torch.float64)
    sums = sums.to(accelerator.device) if accelerator.device.type != "mps" else sums.float()
    for batch, counts in batches:
        batch = on_device(batch, accelerator.device)
        with _own_random_numbers(accelerator.device), autocast:
            output = model(**batch)
        if not counts:
            continue
        labels, order = batch["prediction_labels"], batch["sentence_order_label"]
        counted = labels != IGNORED
        sums += torch.stack(
            [
                output.mlm_loss * counted.sum(),
                (output.prediction_logits.argmax(-1) == labels).sum(),  # no token is −100
                (unigram_loss_V[labels.clamp(min=0)] * counted).sum(),
                counted.sum(),
                output.sop_loss * order.numel(),
                (output.seq_relationship_logits.argmax(-1) == order).sum(),
                torch.tensor(order.numel(), device=order.device),
            ]
        ).to(sums.dtype)
    model.train(was_training)
    mlm, hits, unigram, tokens, sop, order_hits, rows = accelerator.reduce(sums, "sum").tolist()
    return ValidationResult(
        mlm_loss=mlm / tokens,
        mlm_accuracy=hits / tokens,
        sop_loss=sop / rows,
        sop_accuracy=order_hits / rows,
        unigram_loss=unigram / tokens,
        tokens=int(tokens),
        rows=int(rows),
    )


def _own_random_numbers(device: torch.device) -> contextlib.AbstractContextManager[None]:
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def unigram_losses(counts_V: np.ndarray, vocab_size: int) -> torch.Tensor:
    """−log frequency of each token, nats, (vocab_size,).

    One is added to every count, so that a token that only the validation split has is not infinite.
    """
    smoothed = np.ones(vocab_size)
    smoothed[: len(counts_V)] += counts_V
    return torch.from_numpy(-np.log(smoothed / smoothed.sum())).float()
