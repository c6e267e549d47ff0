"""What a checkpoint holds, in this project's terms: its shape and its tensors."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from nystromformer.model.configuration import NystromformerConfig

POSITIONS = "nystromformer.embeddings.position_embeddings.weight"
WORDS = "nystromformer.embeddings.word_embeddings.weight"
TOKEN_TYPES = "nystromformer.embeddings.token_type_embeddings.weight"
TIED = frozenset({"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"})
VOCABULARY = frozenset({WORDS, "cls.predictions.bias", *TIED})
"""What has one row a token."""
BERTS = ("BERT", "RoBERTa")


@dataclass
class Source:
    """One checkpoint, read."""

    path: str
    kind: str
    """`BERT`, `RoBERTa`, `Nyströmformer` or `authors' file`."""
    config: NystromformerConfig
    """The shape the tensors have; its attention is what the file says, which may not be what is wanted."""
    weights: dict[str, Tensor] = field(default_factory=dict)
    """Under the names of NystromformerForPreTraining; the position table begins with its unused rows. Empty
    where only the shape was asked for."""
    left_out: list[str] = field(default_factory=list)
    """Names in the file that have no place in the model."""

    def __post_init__(self) -> None:
        # A model without segments: both get the one row there is, and may part in training.
        self.config.type_vocab_size = max(self.config.type_vocab_size, 2)
        types = self.weights.get(TOKEN_TYPES)
        if types is not None and types.shape[0] == 1:
            self.weights[TOKEN_TYPES] = types.repeat(2, 1)
        if self.config.tie_word_embeddings:
            for name in TIED:
                self.weights.pop(name, None)

    @property
    def is_bert(self) -> bool:
        """Whether its attention is another project's exact one, which says nothing about what is wanted."""
        return self.kind in BERTS
