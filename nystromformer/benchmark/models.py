"""The models whose training steps are compared: of one size, on the same tokens."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from nystromformer.benchmark.contenders import transformers_nystromformer
from nystromformer.data.layout import Batch
from nystromformer.model import NystromformerConfig
from nystromformer.model.heads import IGNORED
from nystromformer.settings.benchmark import BenchmarkSettings

OURS = "nystromformer"
NEAR = "nystromformer, exact neighbours"
EXACT = "nystromformer, exact attention"
PEER = "transformers Nystromformer"
BERT = "transformers BERT, SDPA"
BERT_WITH_DROPOUT = "transformers BERT, SDPA, attention dropout"
MODERNBERT = "transformers ModernBERT, SDPA"
PREDICTED = 0.15
DROPOUT = 0.1
"""On hidden states, everywhere. On attention only in the model that says so: it is BERT's default, and a
CPU has no fused kernel for it."""


def batch_of(settings: BenchmarkSettings, length: int) -> Batch:
    """Random tokens without padding, on the CPU, where the loader leaves them."""
    generator = torch.Generator().manual_seed(settings.seed)
    shape = (max(1, settings.tokens // length), length)
    tokens = torch.randint(200, settings.vocab_size, shape, generator=generator)
    predicted = torch.rand(shape, generator=generator) < PREDICTED
    return {
        "input_ids": tokens.masked_fill(predicted, 103),
        "attention_mask": torch.ones_like(tokens),
        "token_type_ids": (torch.arange(length) >= length // 2).long().expand(shape).contiguous(),
        "labels": tokens.masked_fill(~predicted, IGNORED),
        "sentence_order_label": torch.arange(shape[0]) % 2,
    }


def our_config(settings: BenchmarkSettings, length: int, attention: str) -> NystromformerConfig:
    return NystromformerConfig(
        **_size(settings, length),
        attention=attention,
        num_landmarks=settings.landmarks,
        conv_kernel_size=settings.kernel if attention == "nystrom" else None,
    )


def _size(settings: BenchmarkSettings, length: int) -> dict[str, Any]:
    """What the configurations of all models call by the same names."""
    return {
        "vocab_size": -(-settings.vocab_size // 64) * 64,
        "hidden_size": settings.hidden,
        "num_hidden_layers": settings.layers,
        "num_attention_heads": settings.hidden // settings.head_dim,
        "intermediate_size": 4 * settings.hidden,
        "max_position_embeddings": length,
        "hidden_dropout_prob": DROPOUT,
        "attention_probs_dropout_prob": 0.0,
    }


def peer(name: str, *, max_position_embeddings: int, **shape: Any) -> PreTrainedModel:
    """A class of transformers' Nystromformer, for rows of exactly so many tokens as it has positions.

    Made to run Nyström attention: its default, landmarks = segment length, is exact attention.
    """
    theirs, length = transformers_nystromformer(), max_position_embeddings
    config = theirs.NystromformerConfig(**shape, max_position_embeddings=length, segment_means_seq_len=length)
    return getattr(theirs, name)(config)


def masked_lm_peer(settings: BenchmarkSettings, length: int) -> PreTrainedModel:
    mechanism: dict[str, Any] = {"num_landmarks": settings.landmarks, "conv_kernel_size": settings.kernel}
    return peer("NystromformerForMaskedLM", **_size(settings, length), **mechanism)


def transformers_bert(
    settings: BenchmarkSettings, length: int, attention_dropout: float = 0.0
) -> PreTrainedModel:
    from transformers import BertConfig, BertForMaskedLM

    size = {**_size(settings, length), "attention_probs_dropout_prob": attention_dropout}
    return BertForMaskedLM(BertConfig(**size, attn_implementation="sdpa"))


def transformers_modernbert(settings: BenchmarkSettings, length: int) -> PreTrainedModel:
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    size = _size(settings, length)
    config = ModernBertConfig(
        **{name: size[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers")},
        num_attention_heads=size["num_attention_heads"],
        intermediate_size=3 * settings.hidden // 2,
        max_position_embeddings=length,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
        attn_implementation="sdpa",
    )  # fmt: skip
    return ModernBertForMaskedLM(config)
