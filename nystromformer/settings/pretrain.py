"""The whole configuration of `nystromformer prepare` and `nystromformer pretrain`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from nystromformer.settings.data import DataSettings, TokenizerSettings
from nystromformer.settings.model import INHERITED, ModelSettings
from nystromformer.settings.training import InitSettings, TrackingSettings, TrainingSettings


@dataclass
class PrepareSettings:
    """What turns a corpus into examples on disk: `prepare` and `pretrain` compute the same folder."""

    data: DataSettings = field(default_factory=DataSettings)
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    max_length: int = 512
    """Tokens of one example, special tokens included."""
    seed: int = 0

    def complaints(self) -> Iterator[str]:
        yield from self.data.complaints()
        yield from self.tokenizer.complaints()
        if self.max_length < 8:
            yield f"max_length={self.max_length} is too short: write at least 8"


@dataclass
class PretrainSettings:
    """Everything that one pretraining run depends on."""

    name: str = "pretrain"
    """The run's folder is `runs_folder/name`; the same name again resumes the run."""
    runs_folder: str = "runs"
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    init: InitSettings = field(default_factory=InitSettings)
    tracking: TrackingSettings = field(default_factory=TrackingSettings)

    def complaints(self) -> Iterator[str]:
        if not self.name or "/" in self.name or self.name.startswith("."):
            yield f"name={self.name!r} is no folder name: write letters, digits, - and _"
        for part in (self.model, self.data, self.tokenizer, self.training, self.init, self.tracking):
            yield from part.complaints()
        for name in self.model.from_source:
            if name not in INHERITED:
                yield f"model.from_source holds {name!r}: write some of {', '.join(INHERITED)}"
            if self.init.source == "scratch":
                yield f"model.{name} has no source to come from: write init=checkpoint, or a value"
        knows_attention = self.model.is_known("attention")
        if (
            self.training.approximation_error_every > 0
            and knows_attention
            and self.model.attention != "nystrom"
        ):
            yield (
                f"training.approximation_error_every={self.training.approximation_error_every}: "
                f"model.attention={self.model.attention} approximates nothing by landmarks: write 0"
            )

    @property
    def preparation(self) -> PrepareSettings:
        """What `nystromformer prepare` would be told for this run; its length must be known."""
        if not self.model.is_known("max_length"):
            raise ValueError("model.max_length is the source's: see training.start.settled")
        tokenizer = self.tokenizer
        if tokenizer.path is None and self.init.source != "scratch":
            # The embeddings that the run starts from are those of the source's own vocabulary.
            tokenizer = replace(tokenizer, path=self.init.path)
        return PrepareSettings(self.data, tokenizer, self.model.max_length, self.training.seed)
