"""What a run starts from: a model of the configured shape and its first weights."""

from __future__ import annotations

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from nystromformer.model import NystromformerConfig, NystromformerForPreTraining
from nystromformer.model.conversion import start_from_bert, start_from_checkpoint
from nystromformer.settings import ModelSettings, PretrainSettings
from nystromformer.training.validation import unigram_losses

VOCABULARY_MULTIPLE = 64
"""The vocabulary is padded to a multiple of this in the model: odd sizes are slow on tensor cores."""


def build_model(
    settings: PretrainSettings, tokenizer: PreTrainedTokenizerBase, unigram_counts: np.ndarray
) -> tuple[NystromformerForPreTraining, str]:
    """The model with its first weights, and a sentence on where they come from.

    The weights are a function of the seed and the settings, the same on every process.

    Args:
        unigram_counts: how often the training split holds each token, (vocabulary,).
    """
    torch.manual_seed(settings.training.seed)
    model = NystromformerForPreTraining(model_config(settings.model, tokenizer))
    if settings.model.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if settings.init.source == "bert":
        start = f"from BERT {settings.init.path}: {start_from_bert(model, str(settings.init.path))}"
    elif settings.init.source == "checkpoint":
        start = f"from {settings.init.path}: {start_from_checkpoint(model, str(settings.init.path))}"
    else:
        start = "from random weights"
        if settings.init.output_bias == "unigram":
            with torch.no_grad():
                model.cls.predictions.bias.copy_(-unigram_losses(unigram_counts, model.config.vocab_size))
    return model, start


def model_config(settings: ModelSettings, tokenizer: PreTrainedTokenizerBase) -> NystromformerConfig:
    padded = -(-len(tokenizer) // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
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
    )
