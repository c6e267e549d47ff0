"""What a run starts from: a model of the configured shape and its first weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from nystromformer.data.layout import Batch
from nystromformer.model import NystromformerConfig, NystromformerForPreTraining
from nystromformer.model.conversion import Source, read_source, start_from
from nystromformer.model.conversion.authors import is_authors_file
from nystromformer.model.conversion.folders import read_config
from nystromformer.model.fitted_convolution import fit_convolutions
from nystromformer.settings import InitSettings, ModelSettings, PretrainSettings
from nystromformer.training.validation import unigram_losses

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


def check_source(init: InitSettings) -> None:
    """Look whether there is a checkpoint to start from, before its tokenizer prepares a corpus.

    Raises:
        UserError: there is none.
    """
    path = str(init.path)
    if init.source != "scratch" and not is_authors_file(path):
        read_config(path)


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
    source = None if init.source == "scratch" else read_source(str(init.path), init.source)
    config = model_config(settings.model, tokenizer, source)
    model = NystromformerForPreTraining(config)
    if settings.model.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if source is not None:
        transfer = start_from(model, source, positions=init.positions)
        if any(name.startswith("cls.predictions") for name in transfer.new):
            _unigram_bias(model, unigram_counts)  # a new head: nothing is lost, and hundreds of steps are won
        growth = ""
        if source.config.max_position_embeddings != config.max_position_embeddings:
            growth = (
                f", {source.config.max_position_embeddings} positions made {config.max_position_embeddings}"
            )
        fits = init.convolution != "zero" and config.attention == "nystrom" and transfer.new_convolution
        return Start(model, f"from the {source.kind} {init.path}{growth}\n{transfer}", fits)
    if init.output_bias == "unigram":
        _unigram_bias(model, unigram_counts)
    return Start(model, "from random weights")


def fit(start: Start, init: InitSettings, rows: Iterable[Batch]) -> None:
    """Fit the kernels of a start on rows of the training split; adds a line to its description."""
    errors = fit_convolutions(start.model.nystromformer, list(rows), scale=init.convolution == "scaled")
    before, after = (sum(part) / len(errors) for part in zip(*errors, strict=True))
    start.description += (
        f"\n  kernels {init.convolution} in closed form on {init.convolution_rows} training rows: mean error "
        f"of a layer's attention {before:.3f}, then {after:.3f}"
    )
    start.fits_convolution = False


def _unigram_bias(model: NystromformerForPreTraining, unigram_counts: np.ndarray) -> None:
    with torch.no_grad():
        model.cls.predictions.bias.copy_(-unigram_losses(unigram_counts, model.config.vocab_size))


def model_config(
    settings: ModelSettings, tokenizer: PreTrainedTokenizerBase, source: Source | None = None
) -> NystromformerConfig:
    """The configured shape; what no setting names (activation, norms, segments) is the source's."""
    padded = -(-len(tokenizer) // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    inherited = {}
    if source is not None:
        names = ("hidden_act", "layer_norm_eps", "type_vocab_size", "initializer_range")
        inherited = {name: getattr(source.config, name) for name in names}
        if 0 <= source.config.vocab_size - padded < VOCABULARY_MULTIPLE:
            padded = source.config.vocab_size  # reserved places, as of a BERT with unused ids
    return NystromformerConfig(
        vocab_size=padded,
        hidden_size=settings.hidden_size,
        num_hidden_layers=settings.num_hidden_layers,
        num_attention_heads=settings.num_attention_heads,
        intermediate_size=settings.intermediate_size,
        attention=settings.attention,
        num_landmarks=settings.num_landmarks,
        landmarks=settings.landmarks,
        pinv_iterations=settings.pinv_iterations,
        linformer_projected=settings.linformer_projected,
        linformer_share_heads=settings.linformer_share_heads,
        longformer_window=settings.longformer_window,
        performer_features=settings.performer_features,
        conv_kernel_size=settings.conv_kernel_size,
        hidden_dropout_prob=settings.hidden_dropout,
        attention_probs_dropout_prob=settings.attention_dropout,
        max_position_embeddings=settings.max_position_embeddings or settings.max_length,
        pad_token_id=tokenizer.pad_token_id,
        **inherited,
    )
