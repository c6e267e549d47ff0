"""Self-pretraining: masked tokens of the task's own training inputs, before the task and without its labels.

As Amos, Berant and Gupta (Never Train from Scratch, 2023): with it, plain transformers come close to
state-space models on the arena. Shapes: B rows, K texts of a row, N positions, P predicted tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from nystromformer.data.layout import Batch, Layout
from nystromformer.data.pairs import Masking
from nystromformer.data.stateless_random import row_keys
from nystromformer.model import NystromformerForPreTraining
from nystromformer.reproduce.lra.task import LraTask
from nystromformer.tasks.batches import TaskBatches
from nystromformer.tasks.lists import collate_lists
from nystromformer.tasks.task import Encoded, padded
from nystromformer.training.loop import Run
from nystromformer.training.objective import Measured
from nystromformer.training.pretraining import validate


class MaskedBatches(TaskBatches):
    """The training inputs with tokens masked, another draw in each epoch; a pure function of (seed, step)."""

    def __init__(self, task: LraTask, share: float, *, batch_size: int, seed: int, steps: int) -> None:
        self._mask = masking(task, share)
        self._seed = seed
        super().__init__(
            task.train, texts_of, batch_size=batch_size, micro_batch_size=None, seed=seed, steps=steps
        )

    def of_step(self, step: int) -> list[Batch]:
        epochs, rows = np.asarray(self.keys_of_step(step), np.int64).T
        (batch,) = super().of_step(step)
        return [masked(batch, self._mask, row_keys(self._seed, epochs, rows))]


def masking(task: LraTask, share: float) -> Masking:
    """80 % [MASK], 10 % another token, 10 % as it was; padding is never chosen."""
    special = np.arange(task.vocabulary + 1) == 0
    return Masking(
        probability=share,
        unit="token",
        mask_id=task.mask_id,
        is_special=special,
        is_continuation=np.zeros_like(special),
        replacements=np.arange(1, task.vocabulary),
    )


def texts_of(encoded: Encoded, rows: Sequence[int]) -> Batch:
    """input_ids and attention_mask, (B, N), or (B, K, N) where a row has several texts."""
    if encoded.texts_of(rows[0]) == 1:
        return padded(encoded, rows, 0)
    return collate_lists(encoded, rows, 0)


def masked(batch: Batch, mask: Masking, keys: NDArray[np.uint64]) -> Batch:
    """A batch to predict tokens of, each text a row of its own.

    Args:
        keys: of the batch's rows, (B,).
    """
    ids = batch["input_ids"]
    flat, texts = ids.reshape(-1, ids.shape[-1]).numpy(), ids.shape[1] if ids.ndim == 3 else 1
    each = row_keys(0, keys.view(np.int64).repeat(texts), np.tile(np.arange(texts), len(keys)))
    given, labels = mask.apply(flat, each)
    columns = {"input_ids": given, "labels": labels, "attention_mask": (flat > 0).astype(np.int64)}
    return Layout(0)({name: torch.from_numpy(column) for name, column in columns.items()})


def held_out(model: NystromformerForPreTraining, batches: Sequence[Batch], run: Run) -> Measured:
    """Loss and accuracy of the masked tokens of batches that are not trained on."""
    no_frequencies = torch.zeros(model.config.vocab_size, device=model.device)
    counted = ((batch, True) for batch in batches)
    found = validate(model, counted, no_frequencies, run.accelerator, run.autocast)
    loss, right = found.mlm_loss, found.mlm_accuracy
    told = f"masked tokens of validation examples: {loss:.3f} nats, {right:.3f} right"
    return Measured({"mlm_loss": loss, "mlm_accuracy": right}, told)
