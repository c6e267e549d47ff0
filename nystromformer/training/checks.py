"""Before the first step: whether data, vocabulary, length and checkpoint agree, and the model computes."""

from __future__ import annotations

from functools import partial

from nystromformer.errors import UserError
from nystromformer.training import devices
from nystromformer.training.computation import note_computation
from nystromformer.training.guard import check_finite
from nystromformer.training.loop import Run, measure


def check_run(run: Run) -> None:
    """Raise UserError for what would otherwise show after hours, or never.

    One batch of the validation is computed: what the device, the number format or the memory cannot
    do, it cannot do at once.
    """
    config, progress = run.model.config, run.progress
    progress.data = run.prepared.folder.name
    if len(run.tokenizer) > config.vocab_size:
        raise UserError(
            f"the tokenizer of {run.prepared.folder} has {len(run.tokenizer)} tokens and the model "
            f"{config.vocab_size}: write init=scratch, or the tokenizer.path that the weights belong to"
        )
    for batch in run.batches.of_step(progress.step) if not progress.finished else []:
        length, largest = batch["input_ids"].shape[1], int(batch["input_ids"].max())
        if length > config.max_position_embeddings:
            raise UserError(
                f"{run.prepared.folder} holds rows of {length} tokens and the model has "
                f"{config.max_position_embeddings} positions: write model.max_length={length} or more"
            )
        if largest >= len(run.tokenizer):
            raise UserError(
                f"{run.prepared.folder} holds token {largest} and its tokenizer has {len(run.tokenizer)}: "
                "remove the folder, and the same command prepares it again"
            )
    if not progress.finished:
        dtype = devices.precision(run.settings.training, run.accelerator.device)
        note_computation(progress, config, run.accelerator, dtype, partial(print, flush=True))
        result = measure(run, count=run.batches.examples_at_once)
        check_finite(
            "the loss of one held-out batch, before any training,",
            result.mlm_loss,
            result.sop_loss,
            newest=run.newest_checkpoint,
        )
