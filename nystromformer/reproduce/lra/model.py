"""The arena's model: two small layers, the mean of their output over the real tokens, and a classifier.

Shapes: B rows, K texts of a row, N positions, W width of the model, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nystromformer.model import NystromformerConfig
from nystromformer.model.embedding import mean_of_real
from nystromformer.model.encoder import NystromformerModel
from nystromformer.reproduce.lra.task import LraTask
from nystromformer.settings.scale import LraScale


class LraClassifier(nn.Module):
    """The project's encoder with mean pooling, in place of [CLS] and pooler.

    Args:
        texts: K; of two, each is encoded by itself, and the classifier reads both, their product and their
            difference.
        pooled_norm: whether it reads them normalised, see RunningNorm.
    """

    def __init__(self, config: NystromformerConfig, texts: int = 1, *, pooled_norm: bool = False) -> None:
        super().__init__()
        self.encoder = NystromformerModel(config, add_pooling_layer=False)
        pooled = config.hidden_size * (1 if texts == 1 else 4)
        self.norm = RunningNorm(pooled) if pooled_norm else nn.Identity()
        self.classifier = nn.Sequential(
            nn.Linear(pooled, config.intermediate_size),
            nn.ReLU(),
            nn.Linear(config.intermediate_size, config.num_labels),
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits (B, C) of ids (B, N) or (B, K, N); the mask is 1 at real tokens, without one all are."""
        n = input_ids.shape[-1]
        mask = None if attention_mask is None else attention_mask.view(-1, n)
        pooled = mean_of_real(self.encoder(input_ids.view(-1, n), mask).last_hidden_state, mask)
        if input_ids.ndim == 3:
            one, other = pooled.unflatten(0, input_ids.shape[:2]).unbind(1)
            pooled = torch.cat([one, other, one * other, one - other], dim=-1)
        return self.classifier(self.norm(pooled))


class RunningNorm(nn.Module):
    """(B, W) → (B, W) less the mean and over the deviation of the latest rows, each of W columns by itself.

    Means over hundreds of bytes have most in common: what differs from row to row is a sixteenth of them, so
    that a classifier's gradient is mostly of the common part. Batch normalisation takes that away too, but by
    the batch at hand in training and by running figures afterwards: while the encoder still moves, these are
    so far apart that what was learned does not show. Here both take the running figures.
    """

    mean: Tensor
    variance: Tensor
    batches: Tensor

    def __init__(self, width: int, momentum: float = 0.1) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, x_BW: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.batches += 1
                share = (1 / self.batches).clamp(min=self.momentum)  # at first the mean of all so far
                self.mean += share * (x_BW.mean(0) - self.mean)
                self.variance += share * ((x_BW - self.mean).square().mean(0) - self.variance)
        return (x_BW - self.mean) / (self.variance + 1e-6).sqrt()


def configuration(attention: str, task: LraTask, scale: LraScale) -> NystromformerConfig:
    """The paper's shape; only Nyström attention has the convolution.

    Args:
        attention: a mechanism, or `neighbours`: Nyström attention with exact neighbours.
    """
    nystrom = attention in ("nystrom", "neighbours")
    return NystromformerConfig(
        vocab_size=task.vocabulary + 1,  # the last is [MASK]
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        attention="nystrom" if nystrom else attention,
        num_landmarks=scale.landmarks,
        neighbours=scale.neighbours if attention == "neighbours" else None,
        conv_kernel_size=scale.kernel if nystrom else None,
        linformer_projected=scale.linformer_projected,
        longformer_window=scale.longformer_window,
        performer_features=scale.performer_features,
        hidden_dropout_prob=scale.dropout,
        attention_probs_dropout_prob=0.0,  # the others have no matrix to drop from
        max_position_embeddings=task.longest,
        type_vocab_size=1,
        num_labels=task.classes,
    )
