"""The typed configuration: what every YAML key means and which values are possible.

Nothing here imports torch, so that `--help` and `--cfg job` answer at once. Everything below the
command line takes these dataclasses, never a DictConfig.
"""

from nystromformer.settings.data import DataSettings, TokenizerSettings
from nystromformer.settings.model import ModelSettings
from nystromformer.settings.pretrain import PrepareSettings, PretrainSettings
from nystromformer.settings.training import InitSettings, TrackingSettings, TrainingSettings

__all__ = [
    "DataSettings",
    "InitSettings",
    "ModelSettings",
    "PrepareSettings",
    "PretrainSettings",
    "TokenizerSettings",
    "TrackingSettings",
    "TrainingSettings",
]
