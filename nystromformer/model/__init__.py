"""The model, in transformers' layout.

Importing this package makes transformers' Auto classes and pipelines use these classes for
checkpoints of model type `nystromformer`, in place of transformers' own, which cannot run Nyström
attention on padded batches or on lengths other than the configured one.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
)

from nystromformer.model.configuration import NystromformerConfig
from nystromformer.model.encoder import NystromformerModel
from nystromformer.model.heads import (
    NystromformerForMaskedLM,
    NystromformerForPreTraining,
    NystromformerForSequenceClassification,
)

AutoConfig.register("nystromformer", NystromformerConfig, exist_ok=True)
AutoModel.register(NystromformerConfig, NystromformerModel, exist_ok=True)
AutoModelForPreTraining.register(NystromformerConfig, NystromformerForPreTraining, exist_ok=True)
AutoModelForMaskedLM.register(NystromformerConfig, NystromformerForMaskedLM, exist_ok=True)
AutoModelForSequenceClassification.register(
    NystromformerConfig, NystromformerForSequenceClassification, exist_ok=True
)

__all__ = [
    "NystromformerConfig",
    "NystromformerForMaskedLM",
    "NystromformerForPreTraining",
    "NystromformerForSequenceClassification",
    "NystromformerModel",
]
