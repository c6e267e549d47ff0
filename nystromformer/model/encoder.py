"""The encoder: embeddings, post-norm layers and the pooler, as in BERT but for the attention.

Parameter names are those of transformers' Nystromformer, so that a checkpoint opens in both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from nystromformer.attention.mechanism import Mechanism
from nystromformer.attention.precision import as_product
from nystromformer.attention.projections import padding_mask_of
from nystromformer.model.arguments import model_forward
from nystromformer.model.attention import NystromformerSelfAttention
from nystromformer.model.configuration import NystromformerConfig
from nystromformer.model.linear import linear

POSITION_OFFSET = 2
"""Rows at the head of the position table that transformers' Nystromformer leaves unused."""


HALVES_STATES = ("cuda",)
"""Devices on which hidden states between the halves of layers have autocast's type, not a norm's float32."""


def as_state(hidden_states: Tensor) -> Tensor:
    """What the next half of a layer reads: its products and its residual sum.

    Under autocast a norm gives float32. The products convert it in any case; kept for the residual sum, it
    doubles what norms, dropout and sums move between memory and a GPU, whose step waits for that.
    """
    return as_product(hidden_states) if hidden_states.device.type in HALVES_STATES else hidden_states


def activation(name: str) -> nn.Module:
    """transformers' activation of this name; its tanh GELU as PyTorch's fused one."""
    if name in ("gelu_new", "gelu_pytorch_tanh"):
        return nn.GELU(approximate="tanh")
    return ACT2FN[name]


class NystromformerEmbeddings(nn.Module):
    """Sum of word, position and segment embeddings, normalised."""

    def __init__(self, config: NystromformerConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(
            config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id
        )
        self.position_embeddings = nn.Embedding(
            config.max_position_embeddings + POSITION_OFFSET, config.hidden_size
        )
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        input_ids: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
    ) -> Tensor:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        words = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        length = words.shape[1]
        limit = self.position_embeddings.num_embeddings - POSITION_OFFSET
        if position_ids is None:
            if length > limit:
                raise ValueError(f"{length} tokens do not fit into the position table of {limit}")
            positions = self.position_embeddings.weight[POSITION_OFFSET : POSITION_OFFSET + length]
        else:
            positions = self.position_embeddings(position_ids + POSITION_OFFSET)
        if token_type_ids is None:
            types = self.token_type_embeddings.weight[0]
        else:
            types = self.token_type_embeddings(token_type_ids)
        return self.dropout(self.LayerNorm(words + positions + types))


class _AddAndNorm(nn.Module):
    """Projection, dropout, residual connection and layer norm: how each half of a layer ends."""

    def __init__(self, config: NystromformerConfig, inputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(linear(self.dense, hidden_states)) + residual)


class NystromformerAttention(nn.Module):
    def __init__(self, config: NystromformerConfig) -> None:
        super().__init__()
        self.self = NystromformerSelfAttention(config)
        self.output = _AddAndNorm(config, config.hidden_size)

    def forward(self, hidden_states: Tensor, padding_mask: Tensor | None, shared: Any) -> Tensor:
        return self.output(self.self(hidden_states, padding_mask, shared), hidden_states)


class NystromformerIntermediate(nn.Module):
    def __init__(self, config: NystromformerConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = activation(config.hidden_act)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return linear(self.dense, hidden_states, self.activation)


class NystromformerLayer(GradientCheckpointingLayer):
    """Post-norm: the norm follows each residual sum, as in BERT."""

    def __init__(self, config: NystromformerConfig) -> None:
        super().__init__()
        self.attention = NystromformerAttention(config)
        self.intermediate = NystromformerIntermediate(config)
        self.output = _AddAndNorm(config, config.intermediate_size)

    def forward(self, hidden_states: Tensor, padding_mask: Tensor | None, shared: Any) -> Tensor:
        hidden_states = as_state(self.attention(hidden_states, padding_mask, shared))
        return self.output(self.intermediate(hidden_states), hidden_states)


class NystromformerEncoder(nn.Module):
    def __init__(self, config: NystromformerConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList([NystromformerLayer(config) for _ in range(config.num_hidden_layers)])
        self.gradient_checkpointing = False

    def forward(
        self, hidden_states: Tensor, padding_mask: Tensor | None, keep_all: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """The last hidden state, and with `keep_all` those after the embeddings and after each layer."""
        first: NystromformerSelfAttention = self.layer[0].get_submodule("attention.self")  # type: ignore[assignment]
        shared = first.attend.shared(padding_mask)
        kept: tuple[Tensor, ...] = (hidden_states,)
        for layer in self.layer:
            hidden_states = layer(as_state(hidden_states), padding_mask, shared)
            if keep_all:
                kept = (*kept, hidden_states)
        return hidden_states, kept if keep_all else None


class NystromformerPooler(nn.Module):
    """tanh of a projection of [CLS]: what sentence order and classification read."""

    def __init__(self, config: NystromformerConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return torch.tanh(linear(self.dense, hidden_states[:, 0]))


class NystromformerPreTrainedModel(PreTrainedModel):
    config_class = NystromformerConfig
    base_model_prefix = "nystromformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["NystromformerLayer"]  # noqa: RUF012 (transformers reads a class attribute)

    def recompute_layers(self) -> None:
        """Keep each layer's input alone for the backward pass, by the name that transformers has for that:
        the older warns from 5.23 on."""
        enable = getattr(self, "activation_checkpointing_enable", None) or self.gradient_checkpointing_enable
        enable()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            # The authors leave the convolution to PyTorch's own default for one input channel; the
            # N(0, 0.02) of a dense layer would start it near zero.
            bound = module.kernel_size[0] ** -0.5
            init.uniform_(module.weight, -bound, bound)
        elif isinstance(module, Mechanism):
            module.reset_parameters()


class NystromformerModel(NystromformerPreTrainedModel):
    """The encoder alone: last hidden state and pooled [CLS]."""

    def __init__(self, config: NystromformerConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = NystromformerEmbeddings(config)
        self.encoder = NystromformerEncoder(config)
        self.pooler = NystromformerPooler(config) if add_pooling_layer else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embeddings.word_embeddings = value

    @model_forward
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """Encode a batch.

        Args:
            input_ids: (B, N) token ids.
            attention_mask: (B, N), 1 at real tokens, 0 at padding, anywhere in the row.
            token_type_ids: (B, N), 0 in segment A and 1 in segment B; all 0 when absent.
            position_ids: (B, N), counted from 0; 0 … N − 1 when absent.
            inputs_embeds: (B, N, hidden) in place of input_ids.
            output_hidden_states: also give the states after the embeddings and after each layer; None for
                what the configuration says.

        Raises:
            ValueError: more tokens than positions, a mask of another shape, or attention weights
                asked for, here or by the configuration: the n × n matrix is never formed.
            TypeError: an argument that there is not.
        """
        if self.config.output_attentions if output_attentions is None else output_attentions:
            raise ValueError(
                "output_attentions=True: the n × n attention matrix is never formed; look at a layer with "
                "nystromformer.model.diagnostics.attention_factors or attention_matrix"
            )
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        last, kept = self.encoder(
            self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds),
            padding_mask_of(attention_mask),
            keep_all=output_hidden_states,
        )
        return BaseModelOutputWithPooling(
            last_hidden_state=last,
            pooler_output=None if self.pooler is None else self.pooler(last),
            hidden_states=kept,
        )
