"""transformers' Auto classes give this project's models for checkpoints of model type `nystromformer`.

transformers has a class of its own for the type, which computes other attention: no Auto class may fall
back on it in silence.
"""

from __future__ import annotations

from typing import Any, NoReturn

from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from nystromformer.errors import UserError
from nystromformer.model import heads
from nystromformer.model.configuration import NystromformerConfig
from nystromformer.model.encoder import NystromformerModel

MODELS: dict[type, type[PreTrainedModel]] = {
    modeling_auto.AutoModel: NystromformerModel,
    modeling_auto.AutoModelForTextEncoding: NystromformerModel,
    modeling_auto.AutoModelForPreTraining: heads.NystromformerForPreTraining,
    modeling_auto.AutoModelForMaskedLM: heads.NystromformerForMaskedLM,
    modeling_auto.AutoModelForSequenceClassification: heads.NystromformerForSequenceClassification,
    modeling_auto.AutoModelForTokenClassification: heads.NystromformerForTokenClassification,
    modeling_auto.AutoModelForQuestionAnswering: heads.NystromformerForQuestionAnswering,
    modeling_auto.AutoModelForMultipleChoice: heads.NystromformerForMultipleChoice,
}


class NoSuchModel(UserError, ValueError):
    """An Auto class for which this project has no model; ValueError is what transformers raises."""


def register_auto_classes() -> None:
    """Put this project's models into the Auto classes, and a refusal where only transformers has one."""
    AutoConfig.register(NystromformerConfig.model_type, NystromformerConfig, exist_ok=True)
    for auto, model in MODELS.items():
        auto.register(NystromformerConfig, model, exist_ok=True)  # type: ignore[attr-defined]
    for auto in _auto_classes():
        # Membership goes by the configuration's name, which transformers' own has too.
        if auto not in MODELS and NystromformerConfig in auto._model_mapping:
            auto.register(NystromformerConfig, _refusal(auto.__name__), exist_ok=True)


def _auto_classes() -> list[Any]:
    classes = [x for x in vars(modeling_auto).values() if isinstance(x, type)]
    return [x for x in classes if getattr(x, "_model_mapping", None) is not None]


def _refusal(auto: str) -> type:
    """Stands for a model in an Auto class, and says that there is none."""

    def refuse(*args: object, **kwargs: object) -> NoReturn:
        known = ", ".join(sorted(known.__name__ for known in MODELS))
        raise NoSuchModel(f"{auto}: this project's Nyströmformer has no such model; there are {known}")

    members = {"config_class": NystromformerConfig, "__module__": __name__}
    return type(f"No{auto}", (), {**members, "from_pretrained": refuse, "_from_config": refuse})
