"""The encoder with its heads: pretraining, masked tokens, a text's class or number, its tokens' classes, an
answer, a choice.

Losses and the shapes of labels are those of transformers' heads (losses.py).

Shapes: B rows, N positions, C classes or columns, K choices, V words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    MaskedLMOutput,
    ModelOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

from nystromformer.model.arguments import model_forward
from nystromformer.model.configuration import NystromformerConfig
from nystromformer.model.encoder import NystromformerModel, NystromformerPreTrainedModel, activation
from nystromformer.model.linear import linear
from nystromformer.model.losses import IGNORED, Items, can_choose_by, classification_loss, cross_entropy

Inputs = tuple[Tensor | None, ...]
"""input_ids, attention_mask, token_type_ids, position_ids and inputs_embeds, as in NystromformerModel."""

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


class _WithHead(NystromformerPreTrainedModel):
    """The encoder and a head that makes logits of what it encoded, with their loss."""

    accepts_loss_kwargs = True
    # A pretraining checkpoint also holds its own heads.
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str] | None] = [r"^cls\.", r"pooler\."]
    output: ClassVar[type[ModelOutput]]
    pools: ClassVar[bool] = False
    """Whether the head reads what the pooler makes of [CLS]."""

    def __init__(self, config: NystromformerConfig) -> None:
        super().__init__(config)
        self.nystromformer = NystromformerModel(config, add_pooling_layer=self.pools)
        self.add_head(config)
        self.post_init()

    def add_head(self, config: NystromformerConfig) -> None:
        """The layers behind the encoder."""
        raise NotImplementedError

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
    ) -> Any:  # `output`; sentence-transformers reads the fields of a named class, of which its base has none
        """Logits, with `labels` also their mean loss; the class says their shapes.

        Args:
            num_items_in_batch: labels of the whole batch of which this is a part, to take the mean over.
            The others are those of NystromformerModel.
        """
        inputs = input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds
        encoded = self.encoded(inputs, output_attentions, output_hidden_states)
        logits = self.logits(encoded)
        loss = None if labels is None else self.loss(logits, labels, num_items_in_batch)
        return self.output(loss=loss, logits=logits, hidden_states=encoded.hidden_states)

    def encoded(self, inputs: Inputs, *options: bool | None) -> BaseModelOutputWithPooling:
        """What the encoder makes of its inputs."""
        return self.nystromformer(*inputs, *options, return_dict=True)

    def logits(self, encoded: BaseModelOutputWithPooling) -> Tensor:
        """What the head makes of the encoder's output."""
        raise NotImplementedError

    def loss(self, logits: Tensor, labels: Tensor, items: Items) -> Tensor:
        """Their mean cross-entropy, over all labels of the batch; −100 does not count."""
        return cross_entropy(logits, labels, items)


class _Classifier(_WithHead):
    """A linear layer behind dropout, as in BERT."""

    def add_head(self, config: NystromformerConfig) -> None:
        self.num_labels = config.num_labels
        share = config.classifier_dropout
        self.dropout = nn.Dropout(config.hidden_dropout_prob if share is None else share)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)


class _TiedDecoder(_WithHead):
    """A model whose decoder is tied to its word embedding."""

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
    """(T, V) at the predicted tokens in reading order, on a CPU; (P, V) at the positions given; else
    (B, N, V)."""
    seq_relationship_logits: Tensor | None = None
    """(B, 2): in order, swapped."""
    hidden_states: tuple[Tensor, ...] | None = None


class NystromformerForPreTraining(_TiedDecoder):
    """Masked language modelling and sentence-order prediction."""

    _keys_to_ignore_on_load_unexpected = None
    pools = True

    def add_head(self, config: NystromformerConfig) -> None:
        self.cls = _PreTrainingHeads(config)

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
            labels: (B, N), the original token where it is to be predicted, −100 elsewhere. On a CPU
                vocabulary logits are computed at the predicted tokens only. How many there are another
                device would be waited for to know, and a graph cannot: there they are computed everywhere,
                as by transformers' BERT, in several times the memory that positions need.
            sentence_order_label: (B,), 0 for in order, 1 for swapped.
            prediction_positions: (P,), the same as `labels` in another form: places in the batch's B · N
                tokens, counted row after row, and the only ones with logits. Their number is known
                beforehand, and can be the same in every batch, as graphs need it.
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
        inputs = input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds
        encoded = self.encoded(inputs, output_attentions, output_hidden_states)
        order_logits = linear(self.cls.seq_relationship, encoded.pooler_output)
        mlm_loss = sop_loss = None
        hidden_states = encoded.last_hidden_state
        if labels is not None:
            labels = labels.reshape(hidden_states.shape[:2])
            prediction_labels = labels
            if can_choose_by(labels):
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
    """Masked language modelling alone, in transformers' interface: logits (B, N, V), labels (B, N) with −100
    where no token is predicted."""

    # A pretraining checkpoint also holds what sentence order needs.
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str] | None] = [r"pooler\.", r"cls\.seq_relationship\."]
    output = MaskedLMOutput

    def add_head(self, config: NystromformerConfig) -> None:
        self.cls = _MaskedLMHead(config)

    def logits(self, encoded: BaseModelOutputWithPooling) -> Tensor:
        return self.cls.predictions(encoded.last_hidden_state)

    def loss(self, logits: Tensor, labels: Tensor, items: Items) -> Tensor:
        labels = labels.reshape(logits.shape[:2])
        if can_choose_by(labels):  # most tokens are not predicted, and a softmax over the vocabulary is dear
            predicted = labels != IGNORED
            logits, labels = logits[predicted], labels[predicted]
        return cross_entropy(logits, labels, items)


class NystromformerForSequenceClassification(_Classifier):
    """Classes or numbers of a whole text from pooled [CLS], as BERT's: logits (B, C), and the loss of
    `config.problem_type`; see `classification_loss` for the labels."""

    _keys_to_ignore_on_load_unexpected: ClassVar[list[str] | None] = [r"^cls\."]
    output = SequenceClassifierOutput
    pools = True

    def logits(self, encoded: BaseModelOutputWithPooling) -> Tensor:
        return linear(self.classifier, self.dropout(encoded.pooler_output))

    def loss(self, logits: Tensor, labels: Tensor, items: Items) -> Tensor:
        return classification_loss(logits, labels, self.config, items)


class NystromformerForTokenClassification(_Classifier):
    """A class for each token, such as the names in a text: logits (B, N, C), labels (B, N)."""

    output = TokenClassifierOutput

    def logits(self, encoded: BaseModelOutputWithPooling) -> Tensor:
        return linear(self.classifier, self.dropout(encoded.last_hidden_state))


class NystromformerForQuestionAnswering(_WithHead):
    """The first and the last token of an answer within the text."""

    def add_head(self, config: NystromformerConfig) -> None:
        self.num_labels = config.num_labels = 2
        self.qa_outputs = nn.Linear(config.hidden_size, config.num_labels)

    @model_forward
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        num_items_in_batch: Items = None,
    ) -> QuestionAnsweringModelOutput:
        """Logits (B, N) of the first and of the last token, with the positions also the loss.

        Args:
            start_positions, end_positions: (B,). One of N or more does not count; one below 0 is taken
                as 0, the place of [CLS].
            num_items_in_batch: answers of the whole batch of which this is a part, to take the mean over.
                transformers' Trainer counts none for this head: it takes the mean of the parts' means.
            The others are those of NystromformerModel.
        """
        inputs = input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds
        encoded = self.encoded(inputs, output_attentions, output_hidden_states)
        start_logits, end_logits = linear(self.qa_outputs, encoded.last_hidden_state).unbind(dim=-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            n = start_logits.shape[1]
            losses = [
                cross_entropy(logits, positions.clamp(0, n), num_items_in_batch, ignored=n)
                for logits, positions in ((start_logits, start_positions), (end_logits, end_positions))
            ]
            loss = (losses[0] + losses[1]) / 2
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=encoded.hidden_states,
        )


class NystromformerForMultipleChoice(_WithHead):
    """One of several texts, such as the right ending of a story: all inputs (B, K, N), inputs_embeds
    (B, K, N, hidden), logits (B, K), labels (B,), the numbers of the right choices."""

    output = MultipleChoiceModelOutput

    def add_head(self, config: NystromformerConfig) -> None:
        self.pre_classifier = nn.Linear(config.hidden_size, config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, 1)

    def encoded(self, inputs: Inputs, *options: bool | None) -> BaseModelOutputWithPooling:
        flat = tuple(None if x is None else x.flatten(0, 1) for x in inputs)
        found = super().encoded(flat, *options)
        choices = next(x.shape[1] for x in (inputs[0], inputs[4]) if x is not None)
        found.last_hidden_state = found.last_hidden_state.unflatten(0, (-1, choices))
        return found

    def logits(self, encoded: BaseModelOutputWithPooling) -> Tensor:
        first = linear(self.pre_classifier, encoded.last_hidden_state[:, :, 0]).relu()
        return linear(self.classifier, first).squeeze(-1)
