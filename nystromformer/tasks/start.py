"""A classifier from any checkpoint known to this project, with its tokenizer."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from nystromformer.errors import UserError
from nystromformer.model import NystromformerConfig, NystromformerForPreTraining
from nystromformer.model.conversion import Source, inherited, read_source, start_from, written
from nystromformer.model.conversion.contents import content_of_checkpoint
from nystromformer.model.conversion.inherit import LARGEST_PADDING
from nystromformer.model.reconstruction import fit_in_closed_form
from nystromformer.settings.finetune import FinetuneSettings, TaskModelSettings
from nystromformer.tasks.task import Encoded, Task


@dataclass
class Checkpoint:
    """What all tasks and seeds start from, read once."""

    source: Source
    tokenizer: PreTrainedTokenizerBase
    config: NystromformerConfig
    """The classifier's, without its labels."""
    content: str
    """What the weights are, see `model.conversion.contents`."""


def read_checkpoint(settings: FinetuneSettings) -> Checkpoint:
    """Read weights and tokenizer.

    Raises:
        UserError: no such checkpoint or tokenizer, or the two do not belong together.
    """
    path = str(settings.checkpoint)
    source = read_source(path, setting="checkpoint")
    tokenizer = open_tokenizer(settings.tokenizer_path, path)
    spare = source.config.vocab_size - len(tokenizer)
    if not 0 <= spare < LARGEST_PADDING:
        raise UserError(
            f"checkpoint={path} has {source.config.vocab_size:,} word embeddings and the tokenizer of "
            f"{settings.tokenizer_path or path} {len(tokenizer):,} tokens: write the "
            "tokenizer_path=FOLDER that the weights were trained with"
        )
    content = content_of_checkpoint(path)
    assert content is not None, "it has just been read"
    return Checkpoint(source, tokenizer, _configuration(source, settings.model), content)


def open_tokenizer(path: str | None, checkpoint: str) -> PreTrainedTokenizerBase:
    """The tokenizer of `path`, or of the checkpoint; raises UserError where there is none to use."""
    name = f"tokenizer_path={path}" if path else f"checkpoint={checkpoint}"
    try:
        tokenizer = AutoTokenizer.from_pretrained(path or checkpoint, trust_remote_code=False)
    except Exception as error:  # transformers raises half a dozen kinds, the hub's client more
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{name} has no tokenizer that can be opened ({first_line}): write tokenizer_path=FOLDER "
            "or a hub name"
        ) from None
    if tokenizer.pad_token_id is None or tokenizer.cls_token_id is None:
        raise UserError(
            f"{name}: its tokenizer has no [PAD] or no [CLS] token: write another tokenizer_path=FOLDER"
        )
    return tokenizer


def _configuration(source: Source, settings: TaskModelSettings) -> NystromformerConfig:
    changes = {name: value for name, value in written(settings).items() if value is not None}
    if settings.max_length is not None:
        changes["max_position_embeddings"] = max(settings.max_length, source.config.max_position_embeddings)
    return inherited(source, changes, setting="checkpoint", section="model.")


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
    encoder = NystromformerForPreTraining(checkpoint.config)
    moved = start_from(encoder, checkpoint.source, positions=settings.positions)
    model = task.head(config)
    wanted = model.nystromformer.state_dict()  # some heads have no pooler
    weights = encoder.nystromformer.state_dict()
    model.nystromformer.load_state_dict({name: weights[name] for name in wanted})
    report = str(moved)
    if moved.new_convolution and config.attention == "nystrom" and settings.convolution != "zero":
        longest = np.argsort(-train.lengths, kind="stable")[: settings.convolution_rows].tolist()
        batches = [task.collate(train, [row], config.pad_token_id or 0, labelled=False) for row in longest]
        rows = [{name: ids.flatten(0, -2) for name, ids in batch.items()} for batch in batches]
        report += f"\n  {fit_in_closed_form(model.nystromformer, rows, settings.convolution)}"
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    return model, report
