"""The whole configuration of `nystromformer prepare` and `nystromformer pretrain`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from nystromformer.settings.data import DataSettings, TokenizerSettings
from nystromformer.settings.model import INHERITED, ModelSettings
from nystromformer.settings.schema import Section, grid, path, place, record, result
from nystromformer.settings.training import (
    InitSettings,
    TrackingSettings,
    TrainingSettings,
    complaints_about_graphs,
)


@dataclass
class PrepareSettings(Section):
    """What turns a corpus into examples on disk: `prepare` and `pretrain` compute the same folder."""

    data: DataSettings = field(default_factory=DataSettings)
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    max_length: int = result(512, at_least=8, fault="too short")
    """Tokens of one example, special tokens included."""
    seed: int = result(0)


@dataclass
class PretrainSettings(Section):
    """Everything that one pretraining run depends on."""

    name: str = place("pretrain", folder_name=True)
    """The run's folder is `runs_folder/name`; the same name again resumes the run."""
    runs_folder: str = place("runs")
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    init: InitSettings = field(default_factory=InitSettings)
    tracking: TrackingSettings = field(default_factory=TrackingSettings)
    branch: str | None = path(None)
    """A checkpoint of another run, runs/NAME/checkpoints/step-N, that this run goes on from as from its own:
    its first N steps must be planned as they were there, what follows is free."""

    def complaints_together(self) -> Iterator[str]:
        for number, phase in enumerate(self.training.phases):
            if self.model.is_known("max_length") and (phase.max_length or 0) > self.model.max_length:
                yield (
                    f"training.phases[{number}].max_length={phase.max_length} is more than "
                    f"model.max_length={self.model.max_length}: write that or less"
                )
        for name in self.model.from_source:
            if name not in INHERITED:
                yield f"model.from_source holds {name!r}: write some of {', '.join(INHERITED)}"
            if self.init.source == "scratch":
                yield f"model.{name} has no source to come from: write init=checkpoint, or a value"
        yield from complaints_about_graphs(self.training.cuda_graphs, self.model.gradient_checkpointing)
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


@dataclass(frozen=True)
class ShardOf:
    """One machine of several that prepare a corpus together."""

    number: int
    """From 1 to `of`."""
    of: int

    @classmethod
    def parse(cls, text: str) -> ShardOf:
        """`3/16` → the third of sixteen. Raises ValueError for anything else."""
        match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise ValueError(text)
        return cls(int(match[1]), int(match[2]))

    def has(self, block: int) -> bool:
        """Whether this machine makes the block of that number."""
        return block % self.of == self.number - 1


@dataclass
class PrepareCommandSettings(PretrainSettings):
    """Settings of `pretrain`, so that the same words prepare what a run will read, and these."""

    shard: str | None = grid(None)
    """I/N: make only the share of machine I of N; all N need one `data.folder`. Then one merges."""
    merge: bool = record(False)
    """Finish what the machines of `shard` made; refused if one of them is not through."""
    repair: str | None = place(None)
    """A prepared folder: make anew its files that are missing or damaged, and nothing else. Every other
    setting is then the folder's own."""

    def complaints_together(self) -> Iterator[str]:
        yield from super().complaints_together()
        if self.shard is not None:
            try:
                ShardOf.parse(self.shard)
            except ValueError:
                yield f"shard={self.shard!r} is impossible: write I/N with I from 1 to N, e.g. shard=1/4"
        if self.data.prepared is not None and (self.shard is not None or self.merge):
            yield f"data.prepared={self.data.prepared!r} is prepared already: leave shard and merge out"
        if (self.shard is not None) + self.merge + (self.repair is not None) > 1:
            yield "shard, merge and repair are three commands: write one of them"
