"""A classifier from any checkpoint known to this project, with its tokenizer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nystromformer.data.layout import Batch
from nystromformer.model import NystromformerConfig
from nystromformer.model.closed_form import fit_in_closed_form
from nystromformer.model.source import Source, content_of_checkpoint, open_source, open_tokenizer, written
from nystromformer.settings.finetune import FinetuneSettings, TaskModelSettings
from nystromformer.tasks.task import Encoded, Task, padded


@dataclass
class Checkpoint:
    """What all tasks and seeds start from, read once."""

    source: Source
    tokenizer: PreTrainedTokenizerBase
    config: NystromformerConfig
    """The classifier's, without its labels."""
    content: str
    """What the weights are, see `content_of_checkpoint`."""


def read_checkpoint(settings: FinetuneSettings) -> Checkpoint:
    """Read weights and tokenizer.

    Raises:
        UserError: no such checkpoint or tokenizer, or the two do not belong together.
    """
    path, changed = str(settings.checkpoint), settings.model
    source = open_source(path, setting="checkpoint")
    source.read()
    tokenizer = open_tokenizer(settings.tokenizer_path, path)
    source.check_tokenizer(tokenizer, settings.tokenizer_path or path)
    content = content_of_checkpoint(path)
    assert content is not None, "it has just been read"
    changes = {name: value for name, value in written(changed).items() if value is not None}
    if changed.max_length is not None:
        changes["max_position_embeddings"] = max(changed.max_length, source.config.max_position_embeddings)
    return Checkpoint(source, tokenizer, source.configuration(changes, section="model."), content)


def max_length_of(checkpoint: Checkpoint, settings: TaskModelSettings) -> int:
    """Tokens of one example."""
    return settings.max_length or checkpoint.config.max_position_embeddings


def build_classifier(
    checkpoint: Checkpoint, task: Task, settings: TaskModelSettings, train: Encoded, *, seed: int
) -> tuple[PreTrainedModel, str]:
    """The model with its first weights, and what became of the checkpoint's parts; a function of the seed.

    Kernels that the checkpoint has not are fitted, if that is asked for, on the longest training rows.
    """
    torch.manual_seed(seed)
    config = copy.deepcopy(checkpoint.config)
    task.configure(config)
    model, copied = checkpoint.source.model_with_head(task.head, config, positions=settings.positions)
    report = str(copied)
    if copied.can_be_fitted and settings.convolution != "zero":
        collate = partial(task.collate, labelled=False)
        rows = settings.convolution_rows
        report += f"\n  {fit_on_longest(model, train, rows, settings.convolution, collate)}"
    if settings.gradient_checkpointing:
        model.recompute_layers()
    return model, report


def fit_on_longest(
    model: PreTrainedModel,
    train: Encoded,
    rows: int,
    how: str,
    collate: Callable[[Encoded, list[int], int], Batch] = padded,
) -> str:
    """Fit what the checkpoint has not on the longest training rows, see `fit_in_closed_form`."""
    longest = np.argsort(-train.lengths, kind="stable")[:rows].tolist()
    batches = [collate(train, [row], model.config.pad_token_id or 0) for row in longest]
    # A row of a choice holds several texts; what a head reads besides is nothing to the encoder.
    inputs = ("input_ids", "attention_mask", "token_type_ids")
    texts = [{name: batch[name].flatten(0, -2) for name in inputs if name in batch} for batch in batches]
    return fit_in_closed_form(model.nystromformer, texts, how)
