"""What pretraining trains for, masked tokens and the order of two segments, and how it is measured.

Shapes: L layers, B rows, H heads, V tokens of the vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from nystromformer.data.layout import Batch
from nystromformer.model import NystromformerConfig, NystromformerForPreTraining
from nystromformer.model.diagnostics import approximation_error
from nystromformer.model.heads import IGNORED
from nystromformer.training.devices import on_device
from nystromformer.training.flops import training_flops
from nystromformer.training.objective import Measured


class Pretraining:
    """The objective of `NystromformerForPreTraining`: means over predicted tokens, and over rows.

    Args:
        sentence_order: whether rows are pairs, whose order is predicted too.
    """

    def __init__(self, config: NystromformerConfig, *, sentence_order: bool = True) -> None:
        self._config = config
        self.losses: tuple[str, ...] = ("mlm_loss", "sop_loss")[: 1 + sentence_order]

    def counts(self, batch: Batch) -> tuple[int, ...]:
        """Predicted tokens, the empty slots aside, and rows."""
        return (int((batch["prediction_labels"] != IGNORED).sum()), len(batch["input_ids"]))[
            : len(self.losses)
        ]

    def means(self, model: torch.nn.Module, batch: Batch) -> tuple[Tensor, ...]:
        output = model(**batch)
        return tuple(getattr(output, name) for name in self.losses)

    def flops(self, lengths: NDArray[np.int64], counts: list[int]) -> float:
        return training_flops(self._config, lengths, predicted=counts[0])


@dataclass
class ValidationResult:
    """Means over the predicted tokens (MLM) and over the rows (sentence order); losses in nats."""

    mlm_loss: float
    mlm_accuracy: float
    sop_loss: float | None
    """None where a row is one segment."""
    sop_accuracy: float | None
    unigram_loss: float
    """Loss on the same tokens of the training split's unigram distribution: knows words, no context."""
    tokens: int
    """Predicted tokens."""
    rows: int

    def measured(self, step: int) -> Measured:
        line = (
            f"validation at step {step}: MLM loss {self.mlm_loss:.3f} (unigram {self.unigram_loss:.3f}), "
            f"accuracy {self.mlm_accuracy:.3f}"
        )
        if self.sop_loss is not None:
            line += f"; sentence order loss {self.sop_loss:.3f}, accuracy {self.sop_accuracy:.3f}"
        figures = {name: value for name, value in asdict(self).items() if value is not None}
        return Measured(figures, line, best_by=self.mlm_loss)


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
    was_training, in_pairs = model.training, False
    model.eval()
    # Sums of: MLM loss, MLM hits, unigram loss, tokens, SOP loss, SOP hits, rows. float64, because
    # a float32 count stops growing at 16.7 million.
    sums = torch.zeros(7, dtype=torch.float64)
    sums = sums.to(accelerator.device) if accelerator.device.type != "mps" else sums.float()
    for batch, counts in batches:
        in_pairs = "sentence_order_label" in batch
        batch = on_device(batch, accelerator.device)
        with _own_random_numbers(accelerator.device), autocast:
            output = model(**batch)
        if not counts:
            continue
        labels, rows_here = batch["prediction_labels"], len(batch["input_ids"])
        counted = labels != IGNORED
        order = batch.get("sentence_order_label")
        hits = None if order is None else (output.seq_relationship_logits.argmax(-1) == order).sum()
        zero = torch.zeros((), device=labels.device)
        sums += torch.stack(
            [
                output.mlm_loss * counted.sum(),
                (output.prediction_logits.argmax(-1) == labels).sum(),  # no token is −100
                (unigram_loss_V[labels.clamp(min=0)] * counted).sum(),
                counted.sum(),
                zero if output.sop_loss is None else output.sop_loss * rows_here,
                zero if hits is None else hits,
                zero + rows_here,
            ]
        ).to(sums.dtype)
    model.train(was_training)
    mlm, hits, unigram, tokens, sop, order_hits, rows = accelerator.reduce(sums, "sum").tolist()
    return ValidationResult(
        mlm_loss=mlm / tokens,
        mlm_accuracy=hits / tokens,
        sop_loss=sop / rows if in_pairs else None,
        sop_accuracy=order_hits / rows if in_pairs else None,
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


def measure_approximation(
    model: NystromformerForPreTraining,
    batches: Iterable[tuple[Batch, bool]],
    accelerator: Accelerator,
    autocast: torch.autocast,
    step: int,
) -> Measured:
    """The error of Nyström attention, its mean over all processes' rows.

    Rows of at most m tokens take exact attention; they are counted and not averaged. All processes
    call it together.

    Args:
        batches: each with whether it counts.

    Returns:
        As figures `layer_0` … and their `mean`, null where every row is exact; `heads`, [layer][head]; `rows`
        and those of them that are `exact_rows`.
    """
    config = model.config
    # Of each head the sum of its errors, and at the end: approximated rows, rows.
    sums = torch.zeros(config.num_hidden_layers * config.num_attention_heads + 2, device=accelerator.device)
    for batch, counts in batches:
        with autocast:
            found = approximation_error(model, batch)
        if not counts:
            continue
        approximated_B = ~found.exact_LB[0]  # of every layer alike: it depends on the row's length
        of_heads_LH = found.error_LBH[:, approximated_B].sum(1)
        rows = torch.stack(
            [approximated_B.sum(), torch.tensor(len(approximated_B)).to(approximated_B.device)]
        )
        sums += torch.cat([of_heads_LH.flatten(), rows]).to(sums)
    *errors, approximated, rows = accelerator.reduce(sums, "sum").tolist()
    heads_LH = None
    if approximated:
        heads_LH = (torch.tensor(errors) / approximated).view(config.num_hidden_layers, -1)
    of_layers = [None] * config.num_hidden_layers if heads_LH is None else heads_LH.mean(1).tolist()
    mean = None if heads_LH is None else heads_LH.mean().item()
    line = f"attention is exact in all {int(rows)} rows that were looked at"
    if mean is not None:
        shown = ", ".join(f"{error:.3f}" for error in of_layers)
        line = f"approximation error at step {step}: {mean:.3f} (by layer {shown})"
    figures = {
        "mean": mean,
        **{f"layer_{number}": error for number, error in enumerate(of_layers)},
        "heads": None if heads_LH is None else heads_LH.tolist(),
        "rows": int(rows),
        "exact_rows": int(rows - approximated),
    }
    return Measured(figures, line)
