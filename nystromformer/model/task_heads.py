"""The encoder with the heads of tasks: a text's class or number, its tokens' classes, an answer, a choice.

Losses and the shapes of labels are those of transformers' heads (losses.py).

Shapes: B texts, N positions, C classes or columns, K choices.
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers.modeling_outputs import (
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

from nystromformer.model.arguments import model_forward
from nystromformer.model.configuration import NystromformerConfig
from nystromformer.model.encoder import NystromformerModel, NystromformerPreTrainedModel
from nystromformer.model.linear import linear
from nystromformer.model.losses import Items, classification_loss, cross_entropy


class _TaskModel(NystromformerPreTrainedModel):
    accepts_loss_kwargs = True
    # A pretraining checkpoint also holds its own heads.
    _keys_to_ignore_on_load_unexpected = [r"^cls\."]  # noqa: RUF012


class _TaskModelWithoutPooler(_TaskModel):
    _keys_to_ignore_on_load_unexpected = [r"^cls\.", r"pooler\."]  # noqa: RUF012


def _dropout(config: NystromformerConfig) -> nn.Dropout:
    """What a classifier reads through, as in BERT."""
    share = config.classifier_dropout
    return nn.Dropout(config.hidden_dropout_prob if share is None else share)


class NystromformerForSequenceClassification(_TaskModel):
    """Classes or numbers of a whole text from pooled [CLS], as BERT's."""

    def __init__(self, config: NystromformerConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.nystromformer = NystromformerModel(config)
        self.dropout = _dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
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
    ) -> SequenceClassifierOutput:
        """Logits (B, C), with `labels` also the loss of `config.problem_type`.

        Args:
            labels: see `classification_loss`.
            num_items_in_batch: labels of the whole batch of which this is a part, to take the mean over.
            The others are those of NystromformerModel.
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
        logits = linear(self.classifier, self.dropout(encoded.pooler_output))
        loss = None
        if labels is not None:
            loss = classification_loss(logits, labels, self.config, num_items_in_batch)
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=encoded.hidden_states)


class NystromformerForTokenClassification(_TaskModelWithoutPooler):
    """A class for each token, such as the names in a text."""

    def __init__(self, config: NystromformerConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.nystromformer = NystromformerModel(config, add_pooling_layer=False)
        self.dropout = _dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
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
    ) -> TokenClassifierOutput:
        """Logits (B, N, C), with `labels` also their mean cross-entropy.

        Args:
            labels: (B, N) class ids, −100 at tokens that do not count.
            num_items_in_batch: labels of the whole batch of which this is a part, to take the mean over.
            The others are those of NystromformerModel.
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
        logits = linear(self.classifier, self.dropout(encoded.last_hidden_state))
        loss = None if labels is None else cross_entropy(logits, labels, num_items_in_batch)
        return TokenClassifierOutput(loss=loss, logits=logits, hidden_states=encoded.hidden_states)


class NystromformerForQuestionAnswering(_TaskModelWithoutPooler):
    """The first and the last token of an answer within the text."""

    def __init__(self, config: NystromformerConfig) -> None:
        super().__init__(config)
        config.num_labels = 2
        self.num_labels = config.num_labels
        self.nystromformer = NystromformerModel(config, add_pooling_layer=False)
        self.qa_outputs = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

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


class NystromformerForMultipleChoice(_TaskModelWithoutPooler):
    """One of several texts, such as the right ending of a story."""

    def __init__(self, config: NystromformerConfig) -> None:
        super().__init__(config)
        self.nystromformer = NystromformerModel(config, add_pooling_layer=False)
        self.pre_classifier = nn.Linear(config.hidden_size, config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, 1)
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
    ) -> MultipleChoiceModelOutput:
        """Logits (B, K), with `labels` also their mean cross-entropy.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids: (B, K, N).
            inputs_embeds: (B, K, N, hidden).
            labels: (B,), the number of the right choice.
            num_items_in_batch: labels of the whole batch of which this is a part, to take the mean over.
            The others are those of NystromformerModel.
        """
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        choices = [x.shape[1] for x in (input_ids, inputs_embeds) if x is not None]
        encoded = self.nystromformer(
            *(None if x is None else x.flatten(0, 1) for x in inputs),
            output_attentions,
            output_hidden_states,
            return_dict=True,
        )
        first = linear(self.pre_classifier, encoded.last_hidden_state[:, 0]).relu()
        logits = linear(self.classifier, first).view(-1, choices[0])
        loss = None if labels is None else cross_entropy(logits, labels, num_items_in_batch)
        return MultipleChoiceModelOutput(loss=loss, logits=logits, hidden_states=encoded.hidden_states)
