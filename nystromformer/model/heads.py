"""The encoder with the heads that predict tokens: pretraining, masked language modelling."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import MaskedLMOutput, ModelOutput

from nystromformer.model.arguments import model_forward
from nystromformer.model.configuration import NystromformerConfig
from nystromformer.model.encoder import NystromformerModel, NystromformerPreTrainedModel, activation
from nystromformer.model.linear import linear
from nystromformer.model.losses import IGNORED, Items, cross_entropy

_TIED = {
    "cls.predictions.decoder.weight": "nystromformer.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}


class _Transform(nn.Module):
    def __init__(self, config: NystromformerConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = activation(config.hidden_act)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.LayerNorm(self.activation(linear(self.dense, hidden_states)))


class _Predictions(nn.Module):
    """BERT's MLM head; the decoder's weight is the word embedding."""

    def __init__(self, config: NystromformerConfig) -> None:
        super().__init__()
        self.transform = _Transform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden_states: Tensor) -> Tensor:
        return linear(self.decoder, self.transform(hidden_states))


class _MaskedLMHead(nn.Module):
    def __init__(self, config: NystromformerConfig) -> None:
        super().__init__()
        self.predictions = _Predictions(config)


class _PreTrainingHeads(_MaskedLMHead):
    def __init__(self, config: NystromformerConfig) -> None:
        super().__init__(config)
        self.seq_relationship = nn.Linear(config.hidden_size, 2)


class _TiedDecoder(NystromformerPreTrainedModel):
    """A model whose decoder is tied to its word embedding."""

    accepts_loss_kwargs = True
    _tied_weights_keys = _TIED

    def get_output_embeddings(self) -> nn.Module:
        return self.cls.predictions.decoder

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.cls.predictions.decoder = new_embeddings
        self.cls.predictions.bias = new_embeddings.bias


@dataclass
class PreTrainingOutput(ModelOutput):
    """What pretraining needs of one batch; T is the number of predicted tokens, V the vocabulary."""

    loss: Tensor | None = None
    """mlm_loss + sop_loss, of those whose labels were given."""
    mlm_loss: Tensor | None = None
    """Mean over the predicted tokens, nats; with num_items_in_batch, these tokens' part of that mean."""
    sop_loss: Tensor | None = None
    """Mean over the rows, nats; with num_items_in_batch, these rows' part of that mean."""
    prediction_logits: Tensor | None = None
    """(T, V) at the predicted tokens in reading order, or (P, V) at the positions given; (B, N, V) without
    either."""
    seq_relationship_logits: Tensor | None = None
    """(B, 2): in order, swapped."""
    hidden_states: tuple[Tensor, ...] | None = None


class NystromformerForPreTraining(_TiedDecoder):
    """Masked language modelling and sentence-order prediction."""

    def __init__(self, config: NystromformerConfig) -> None:
        super().__init__(config)
        self.nystromformer = NystromformerModel(config)
        self.cls = _PreTrainingHeads(config)
        self.post_init()

    @model_forward
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        sentence_order_label: Tensor | None = None,
        prediction_positions: Tensor | None = None,
        prediction_labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        num_items_in_batch: Items = None,
    ) -> PreTrainingOutput:
        """Losses and logits of one batch.

        Args:
            input_ids, … inputs_embeds, output_attentions, output_hidden_states: as in NystromformerModel.
            labels: (B, N), the original token where it is to be predicted, −100 elsewhere. Vocabulary
                logits are computed at the predicted tokens only.
            sentence_order_label: (B,), 0 for in order, 1 for swapped.
            prediction_positions: (P,), the same as `labels` in another form: places in the batch's B · N
                tokens, counted row after row. Their number is known beforehand, so a GPU is not waited
                for, and it can be the same in every batch.
            prediction_labels: (P,), the original tokens there, −100 where a place is only there to fill.
            num_items_in_batch: predicted tokens of the whole batch of which this is a part, as transformers'
                Trainer counts them. It does not count rows: sentence order then weighs as these tokens do
                among all, which is its mean over all rows where each part predicts as many a row.

        transformers' Trainer evaluates no loss unless it has every argument that is named a label. Tell it
        which there are: `TrainingArguments(label_names=["labels", "sentence_order_label"])`.

        Raises:
            ValueError: `labels` beside positions, or positions without their labels.
        """
        if (prediction_positions is None) != (prediction_labels is None):
            raise ValueError("prediction_positions and prediction_labels go together: give both or neither")
        if labels is not None and prediction_labels is not None:
            raise ValueError("labels and prediction_labels say the same: give one of them")
        encoded = self.nystromformer(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            output_attentions,
            output_hidden_states,
            return_dict=True,
        )
        order_logits = linear(self.cls.seq_relationship, encoded.pooler_output)
        mlm_loss = sop_loss = None
        hidden_states = encoded.last_hidden_state
        if labels is not None:
            labels = labels.reshape(hidden_states.shape[:2])
            predicted = labels != IGNORED
            hidden_states, prediction_labels = hidden_states[predicted], labels[predicted]
        elif prediction_positions is not None:
            hidden_states = hidden_states.flatten(0, 1).index_select(0, prediction_positions)
        prediction_logits = self.cls.predictions(hidden_states)
        if prediction_labels is not None:
            mlm_loss = cross_entropy(prediction_logits, prediction_labels, num_items_in_batch)
        if sentence_order_label is not None:
            sop_loss = cross_entropy(order_logits, sentence_order_label)
            if num_items_in_batch is not None and prediction_labels is not None:
                sop_loss = sop_loss * (prediction_labels != IGNORED).sum() / num_items_in_batch
        losses = [loss for loss in (mlm_loss, sop_loss) if loss is not None]
        return PreTrainingOutput(
            loss=torch.stack(losses).sum() if losses else None,
            mlm_loss=mlm_loss,
            sop_loss=sop_loss,
            prediction_logits=prediction_logits,
            seq_relationship_logits=order_logits,
            hidden_states=encoded.hidden_states,
        )


class NystromformerForMaskedLM(_TiedDecoder):
    """Masked language modelling alone, in transformers' interface."""

    # A pretraining checkpoint also holds what sentence order needs.
    _keys_to_ignore_on_load_unexpected = [r"pooler\.", r"cls\.seq_relationship\."]  # noqa: RUF012

    def __init__(self, config: NystromformerConfig) -> None:
        super().__init__(config)
        self.nystromformer = NystromformerModel(config, add_pooling_layer=False)
        self.cls = _MaskedLMHead(config)
        self.post_init()

    @model_forward
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        num_items_in_batch: Items = None,
    ) -> MaskedLMOutput:
        """Logits (B, N, V); with `labels`, (B, N) and −100 where not predicted, also their mean loss.

        `num_items_in_batch` is the number of predicted tokens to take the mean over, where this batch is a
        part of one; the other arguments are those of NystromformerModel.
        """
        encoded = self.nystromformer(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            output_attentions,
            output_hidden_states,
            return_dict=True,
        )
        logits = self.cls.predictions(encoded.last_hidden_state)
        loss = None
        if labels is not None:
            labels = labels.reshape(logits.shape[:2])
            predicted = labels != IGNORED
            loss = cross_entropy(logits[predicted], labels[predicted], num_items_in_batch)
        return MaskedLMOutput(loss=loss, logits=logits, hidden_states=encoded.hidden_states)
