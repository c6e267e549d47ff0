"""What a run starts from: a model of the configured shape and its first weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from nystromformer.data.layout import Batch
from nystromformer.model import NystromformerConfig, NystromformerForPreTraining
from nystromformer.model.closed_form import fit_in_closed_form
from nystromformer.model.source import Source, open_source, written
from nystromformer.settings import InitSettings, ModelSettings, PretrainSettings
from nystromformer.settings.model import configuration_name
from nystromformer.training.pretraining import unigram_losses
from nystromformer.training.run_folder import RunFolder

S = TypeVar("S", bound=PretrainSettings)

NEIGHBOURS_OF_A_START = 64
"""Blocks of exact neighbours with which a BERT starts where nobody wrote `model.neighbours`."""

NARROWEST_ON_GPU = 33
"""Width of heads that a GPU's kernels of neighbours take in blocks of 64; narrower ones are slow there."""

VOCABULARY_MULTIPLE = 64
"""The vocabulary is padded to a multiple of this in the model: odd sizes are slow on tensor cores."""


@dataclass
class Start:
    """A model with its first weights."""

    model: NystromformerForPreTraining
    description: str
    """Where the weights come from, and what became of each part of a source; several lines."""
    fits_convolution: bool = False
    """Whether the kernels are still to be fitted, by `fit`, once the model is on its device."""


def settled(settings: S) -> S:
    """The settings with every model setting known: those that nobody wrote are the source's, or the run's.

    The source is looked at before its tokenizer prepares a corpus; its tensors are not read.

    Raises:
        UserError: there is no such source, or it cannot become what was written.
    """
    init, model = settings.init, settings.model
    if init.source == "scratch":
        return settings
    source = open_source(str(init.path), init.source)
    stored = RunFolder(settings).stored()
    if stored is not None:  # it goes on as it began, even if its source has changed since
        begun = {name: getattr(stored.model, name) for name in model.from_source}
        model = replace(model, **begun, from_source=[])
    changes = _changes(model)
    if model.is_known("max_length") and not model.is_known("max_position_embeddings"):
        changes["max_position_embeddings"] = max(model.max_length, source.config.max_position_embeddings)
    if source.is_bert and stored is None and "neighbours" in model.from_source:
        changes["neighbours"] = _neighbours_of_a_start(
            changes.get("attention", "nystrom"),
            source.config.hidden_size // source.config.num_attention_heads,
        )
    config = source.configuration(changes, section="model.")
    found: dict[str, Any] = {
        name: getattr(config, configuration_name(name), None) for name in model.from_source
    }
    if "max_length" in found:
        found["max_length"] = config.max_position_embeddings
    model = replace(model, **found, from_source=[])
    # A BERT's dropout on its attention matrix stays in the configuration, whatever attention it gets.
    undropped = (
        model if settings.model.is_known("attention_dropout") else replace(model, attention_dropout=0.0)
    )
    replace(settings, model=undropped).check()
    return replace(settings, model=model)


def _neighbours_of_a_start(attention: str, head_width: int) -> int | None:
    """With them a trained BERT's figures are kept."""
    if attention != "nystrom" or (torch.cuda.is_available() and head_width < NARROWEST_ON_GPU):
        return None
    return NEIGHBOURS_OF_A_START


def build_model(
    settings: PretrainSettings, tokenizer: PreTrainedTokenizerBase, unigram_counts: np.ndarray
) -> Start:
    """The model of the configured shape with its first weights.

    The weights are a function of the seed and the settings, the same on every process.

    Args:
        unigram_counts: how often the training split holds each token, (vocabulary,).
    """
    torch.manual_seed(settings.training.seed)
    init = settings.init
    source = None if init.source == "scratch" else open_source(str(init.path), init.source)
    config = model_config(settings.model, tokenizer, source)
    if source is None:
        start = Start(NystromformerForPreTraining(config), "from random weights")
        new_head = init.output_bias == "unigram"
    else:
        model, copied = source.model(config, positions=init.positions)
        before, now = source.config.max_position_embeddings, config.max_position_embeddings
        growth = "" if before == now else f", {before} positions made {now}"
        if config.attention == "nystrom" and config.neighbours is not None and source.is_bert:
            growth += f", with exact neighbours in blocks of {config.neighbours}"
        fits = init.convolution != "zero" and copied.can_be_fitted
        start = Start(model, f"from the {source.kind} {init.path}{growth}\n{copied}", fits)
        new_head = any(name.startswith("cls.predictions") for name in copied.new)
    if new_head:  # nothing is lost, and hundreds of steps are won
        losses = unigram_losses(unigram_counts, config.vocab_size)
        with torch.no_grad():
            start.model.cls.predictions.bias.copy_(-losses)
    if not settings.data.sentence_order:  # nothing is learned by these, and DDP waits for their gradients
        start.model.nystromformer.get_submodule("pooler").requires_grad_(False)
        start.model.cls.seq_relationship.requires_grad_(False)
    if settings.model.gradient_checkpointing:
        start.model.recompute_layers()
    return start


def fit(start: Start, init: InitSettings, rows: Iterable[Batch]) -> None:
    """Fit the kernels of a start on rows of the training split; adds a line to its description."""
    done = fit_in_closed_form(start.model.nystromformer, list(rows), init.convolution)
    start.description += f"\n  {done}"
    start.fits_convolution = False


def _changes(settings: ModelSettings) -> dict[str, Any]:
    """The written settings as fields of the configuration; an empty position table is one of max_length."""
    changes = written(settings, without=settings.from_source)
    if changes.get("max_position_embeddings") is None:
        changes.pop("max_position_embeddings", None)
        if settings.is_known("max_length", "max_position_embeddings"):
            changes["max_position_embeddings"] = settings.max_length
    return changes


def model_config(
    settings: ModelSettings, tokenizer: PreTrainedTokenizerBase, source: Source | None = None
) -> NystromformerConfig:
    """The settled shape with the tokenizer's vocabulary; what no setting names is the source's."""
    padded = -(-len(tokenizer) // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    if source is not None and 0 <= source.config.vocab_size - padded < VOCABULARY_MULTIPLE:
        padded = source.config.vocab_size  # reserved places, as of a BERT with unused ids
    changes = {**_changes(settings), "vocab_size": padded, "pad_token_id": tokenizer.pad_token_id}
    if source is None:
        return NystromformerConfig(**changes)
    return source.configuration(changes, section="model.")
