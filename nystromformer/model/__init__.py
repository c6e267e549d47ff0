"""The model, in transformers' layout.

Importing this package makes transformers' Auto classes and pipelines use these classes for
checkpoints of model type `nystromformer`, in place of transformers' own, which cannot run Nyström
attention on padded batches or on lengths other than the configured one.
"""

from nystromformer.model.auto import register_auto_classes
from nystromformer.model.configuration import NystromformerConfig
from nystromformer.model.embedding import NystromformerForEmbedding
from nystromformer.model.encoder import NystromformerModel
from nystromformer.model.heads import (
    NystromformerForMaskedLM,
    NystromformerForMultipleChoice,
    NystromformerForPreTraining,
    NystromformerForQuestionAnswering,
    NystromformerForSequenceClassification,
    NystromformerForTokenClassification,
)

register_auto_classes()

__all__ = [
    "NystromformerConfig",
    "NystromformerForEmbedding",
    "NystromformerForMaskedLM",
    "NystromformerForMultipleChoice",
    "NystromformerForPreTraining",
    "NystromformerForQuestionAnswering",
    "NystromformerForSequenceClassification",
    "NystromformerForTokenClassification",
    "NystromformerModel",
]
