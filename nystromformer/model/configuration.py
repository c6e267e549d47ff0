"""The model's configuration, in transformers' format."""

from __future__ import annotations

import inspect
from typing import Any

from transformers import PreTrainedConfig

from nystromformer.mechanisms import MECHANISMS
from nystromformer.settings.model import check, declared_fields

_REMOVED = {"short_rows": "exact"}
"""Fields of earlier versions, and the one value of each that means what is computed today."""


class NystromformerConfig(PreTrainedConfig):
    """Shape of a Nyströmformer, saved as `config.json`.

    The keys are those of transformers' own Nystromformer, so that its checkpoints open here. It has no
    `segment_means_seq_len` to set: any length works, and the key is only written, equal to
    `num_landmarks`, because that is the one setting in which transformers' class accepts any length
    (it then computes exact attention plus the convolution).

    Args:
        attention: the mechanism, one of nystromformer/mechanisms.py: `nystrom`; `softmax` for exact
            attention (BERT's); or `linformer`, `longformer`, `performer`, the other rows of the paper's
            efficiency table. Fields that a mechanism declares in its file (`Settings`), e.g.
            `num_landmarks`, are fields here; their values are checked for the mechanism that is used.
        conv_kernel_size: width of the residual convolution over the values, odd; None for none.
        max_position_embeddings: longest input, special tokens included.
        attention_probs_dropout_prob: dropout on the attention matrix; exact attention only.
    """

    model_type = "nystromformer"

    def __init__(
        self,
        vocab_size: int = 30522,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        attention: str = "nystrom",
        conv_kernel_size: int | None = 33,
        hidden_act: str = "gelu_new",
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.1,
        classifier_dropout: float | None = None,
        max_position_embeddings: int = 512,
        type_vocab_size: int = 2,
        initializer_range: float = 0.02,
        layer_norm_eps: float = 1e-5,
        pad_token_id: int | None = 0,
        tie_word_embeddings: bool = True,
        **kwargs: Any,
    ) -> None:
        kwargs.pop("segment_means_seq_len", None)
        if attention not in MECHANISMS:
            raise ValueError(f"attention={attention!r} is unknown: use one of {', '.join(MECHANISMS)}")
        for name, today in _REMOVED.items():
            if (value := kwargs.pop(name, today)) != today:
                raise ValueError(
                    f"{name}={value!r} was removed, since no measurement favoured it: use {today!r}, or the "
                    "version that trained the model"
                )
        kwargs.pop("short_row_segment", None)
        declared = {}
        for one in declared_fields():
            value = kwargs.pop(one.name, one.default)
            # Where None is the default, 0 is a way to write it.
            declared[one.name] = value or None if one.default is None else value
        check(attention, declared)
        if hidden_size % num_attention_heads:
            raise ValueError(
                f"num_attention_heads={num_attention_heads} does not divide hidden_size={hidden_size}"
            )
        if conv_kernel_size is not None and conv_kernel_size % 2 == 0:
            raise ValueError(f"conv_kernel_size={conv_kernel_size} cannot be centred: use an odd width")
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.attention = attention
        for name, value in declared.items():
            setattr(self, name, value)
        self.segment_means_seq_len = self.num_landmarks
        self.conv_kernel_size = conv_kernel_size
        self.hidden_act = hidden_act
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.classifier_dropout = classifier_dropout
        self.max_position_embeddings = max_position_embeddings
        self.type_vocab_size = type_vocab_size
        self.initializer_range = initializer_range
        self.layer_norm_eps = layer_norm_eps
        super().__init__(pad_token_id=pad_token_id, tie_word_embeddings=tie_word_embeddings, **kwargs)
        self.pad_token_id = pad_token_id
        self.tie_word_embeddings = tie_word_embeddings


CONFIGURATION = tuple(
    name
    for name in inspect.signature(NystromformerConfig.__init__).parameters
    if name not in ("self", "kwargs")
) + tuple(one.name for one in declared_fields())
"""Every field of the configuration that decides what a model computes."""
