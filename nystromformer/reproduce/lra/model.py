"""The arena's model: two small layers, the mean of their output over the real tokens, and a classifier.

Shapes: B rows, N positions, W width of the model, C classes.
"""

from __future__ import annotations

from torch import Tensor, nn

from nystromformer.model import NystromformerConfig
from nystromformer.model.encoder import NystromformerModel
from nystromformer.reproduce.lra.examples import LraTask
from nystromformer.settings.scale import LraScale


class LraClassifier(nn.Module):
    """The project's encoder with mean pooling, in place of [CLS] and pooler."""

    def __init__(self, config: NystromformerConfig) -> None:
        super().__init__()
        self.encoder = NystromformerModel(config, add_pooling_layer=False)
        self.classifier = nn.Sequential(
            nn.Linear(config.hidden_size, config.intermediate_size),
            nn.ReLU(),
            nn.Linear(config.intermediate_size, config.num_labels),
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits (B, C) of ids (B, N) whose mask is 1 at real tokens; without one all are real."""
        hidden_BNW = self.encoder(input_ids, attention_mask).last_hidden_state
        return self.classifier(mean_over_tokens(hidden_BNW, attention_mask))


def mean_over_tokens(hidden_BNW: Tensor, attention_mask: Tensor | None) -> Tensor:
    """(B, W): the mean over the real tokens of each row, in float32."""
    if attention_mask is None:
        return hidden_BNW.float().mean(dim=1)
    real_BN1 = attention_mask.unsqueeze(-1).float()
    return (hidden_BNW.float() * real_BN1).sum(dim=1) / real_BN1.sum(dim=1).clamp(min=1)


def configuration(attention: str, task: LraTask, scale: LraScale) -> NystromformerConfig:
    """The paper's shape; only Nyström attention has the convolution."""
    return NystromformerConfig(
        vocab_size=task.vocabulary,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        attention=attention,
        num_landmarks=scale.landmarks,
        conv_kernel_size=scale.kernel if attention == "nystrom" else None,
        linformer_projected=scale.linformer_projected,
        longformer_window=scale.longformer_window,
        performer_features=scale.performer_features,
        hidden_dropout_prob=scale.dropout,
        attention_probs_dropout_prob=0.0,  # the others have no matrix to drop from
        max_position_embeddings=task.longest,
        type_vocab_size=1,
        num_labels=task.classes,
    )
