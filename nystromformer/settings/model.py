"""Settings of the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from nystromformer.settings.schema import Section, record, result, speed

ATTENTIONS = ("nystrom", "softmax", "linformer", "longformer", "performer")
LANDMARKS = ("segment_means", "uniform", "kmeans")
SHORT_ROWS = ("exact", "exact_without_convolution", "landmark_per_token", "segments")
_OTHER_NAMES = {"hidden_dropout": "hidden_dropout_prob", "attention_dropout": "attention_probs_dropout_prob"}


def configuration_name(setting: str) -> str:
    """What a model setting is called in the model's own configuration, if that has it."""
    return _OTHER_NAMES.get(setting, setting)


@dataclass
class ModelSettings(Section, at="model"):
    """The encoder's shape and its attention; the vocabulary comes from the tokenizer."""

    attention: str = result("nystrom", choices=ATTENTIONS)
    """`nystrom`, `softmax` (exact attention, BERT's), `linformer`, `longformer` or `performer`."""
    hidden_size: int = result(768, at_least=1)
    num_hidden_layers: int = result(12, at_least=1)
    num_attention_heads: int = result(12, at_least=1)
    intermediate_size: int = result(3072, at_least=1)
    max_length: int = result(512, at_least=8, fault="too short")
    """Tokens of one example, special tokens included; also what the position table holds."""
    max_position_embeddings: int | None = result(None)
    """Positions in the table; empty means max_length."""
    num_landmarks: int = result(64, at_least=1)
    """Landmarks of each head; `nystrom` only."""
    landmarks: str = result("segment_means", choices=LANDMARKS)
    """How landmarks are chosen: `segment_means`, `uniform` (random tokens) or `kmeans`; `nystrom` only."""
    pinv_iterations: int | None = result(6, at_least=1)
    """Iterations of the pseudoinverse, empty for the exact one; `nystrom` only."""
    neighbours: int | None = result(None, at_least=1)
    """Tokens of a block: each attends exactly to its own block, the two beside it and the salient tokens, and
    through landmarks to the rest; empty for landmarks alone, the paper's attention; `nystrom` only."""
    salient_tokens: int = result(1, at_least=1)
    """With neighbours: tokens that all attend to exactly, of each row and head: the first, and the others
    that the landmarks attend to most."""
    short_rows: str = result("exact", choices=SHORT_ROWS)
    """What `nystrom` does with rows of at most num_landmarks tokens: `exact` attention with the convolution,
    `exact_without_convolution`, `landmark_per_token`, or `segments` of short_row_segment tokens."""
    short_row_segment: int = result(8, at_least=1)
    """Tokens of a landmark in short rows, for short_rows=segments."""
    linformer_projected: int = result(256, at_least=1)
    """Mixtures of tokens that Linformer attends to."""
    linformer_share_heads: bool = result(True)
    """One projection a layer for all of Linformer's heads, or one a head."""
    longformer_window: int = result(257, odd=True)
    """Positions that a token of Longformer sees, itself in the middle, odd."""
    performer_features: int = result(256, at_least=1)
    """Random features of Performer."""
    conv_kernel_size: int | None = result(33, odd=True, write="an odd number, or null for no convolution")
    """Width of the residual convolution over the values, odd; empty for none."""
    hidden_dropout: float = result(0.1, noun="share", at_least=0, below=1)
    attention_dropout: float = result(0.0, noun="share", at_least=0, below=1)
    """Dropout on the attention matrix; only exact attention has one."""
    gradient_checkpointing: bool = speed(False)
    """Keep only each layer's input for the backward pass and compute the rest again."""
    from_source: list[str] = record([])
    """With init=bert or init=checkpoint: the settings above that are init.path's and not what stands here;
    the command line lists those that nobody wrote."""

    def is_known(self, *names: str) -> bool:
        """Whether the settings are what stands here."""
        return not set(names) & set(self.from_source)

    def complaints_together(self) -> Iterator[str]:
        shape_is_known = self.is_known("hidden_size", "num_attention_heads")
        if shape_is_known and self.num_attention_heads >= 1 and self.hidden_size % self.num_attention_heads:
            yield (
                f"model.num_attention_heads={self.num_attention_heads} does not divide "
                f"model.hidden_size={self.hidden_size}: write a divisor, e.g. "
                f"{_divisor_near(self.hidden_size, self.num_attention_heads)}"
            )
        positions = self.max_position_embeddings
        if positions is not None and positions < self.max_length and self.is_known("max_length"):
            yield (
                f"model.max_length={self.max_length} is beyond the position table of "
                f"model.max_position_embeddings={positions}: write max_length <= {positions}, or raise "
                "or remove max_position_embeddings"
            )
        can_drop = self.attention == "softmax" or not self.is_known("attention", "attention_dropout")
        if not can_drop and self.attention_dropout > 0:
            yield (
                f"model.attention_dropout={self.attention_dropout} cannot apply: {self.attention} attention "
                "has no attention matrix to drop from; write 0 and use model.hidden_dropout"
            )


INHERITED = tuple(
    part.name for part in fields(ModelSettings) if part.name not in ("gradient_checkpointing", "from_source")
)
"""Settings that init=bert and init=checkpoint take from the source where nobody wrote them."""


def _divisor_near(number: int, wanted: int) -> int:
    divisors = [d for d in range(1, max(number, 1) + 1) if number % d == 0]
    return min(divisors, key=lambda d: (abs(d - wanted), d), default=1)
