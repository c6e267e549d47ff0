"""Nyströmformer: a BERT-style encoder whose attention costs O(n) in the length of the sequence.

The public names load on first use, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nystromformer.attention.nystrom import nystrom_attention
    from nystromformer.attention.transformers_interface import register_attention
    from nystromformer.model import (
        NystromformerConfig,
        NystromformerForEmbedding,
        NystromformerForMaskedLM,
        NystromformerForMultipleChoice,
        NystromformerForPreTraining,
        NystromformerForQuestionAnswering,
        NystromformerForSequenceClassification,
        NystromformerForTokenClassification,
        NystromformerModel,
    )
    from nystromformer.model.diagnostics import approximation_error, attention_factors, attention_matrix

__version__ = "0.1.0"

_HOMES = {
    "approximation_error": "nystromformer.model.diagnostics",
    "attention_factors": "nystromformer.model.diagnostics",
    "attention_matrix": "nystromformer.model.diagnostics",
    "nystrom_attention": "nystromformer.attention.nystrom",
    "register_attention": "nystromformer.attention.transformers_interface",
}
"""Of the names that are not of `nystromformer.model`."""

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
    "approximation_error",
    "attention_factors",
    "attention_matrix",
    "nystrom_attention",
    "register_attention",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(_HOMES.get(name, "nystromformer.model")), name)
    raise AttributeError(f"module 'nystromformer' has no attribute {name!r}")
