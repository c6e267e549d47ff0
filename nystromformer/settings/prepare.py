"""The whole configuration of `nystromformer prepare`: that of `pretrain`, and how the work is shared."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from nystromformer.settings.pretrain import PretrainSettings


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

    shard: str | None = None
    """I/N: make only the share of machine I of N; all N need one `data.folder`. Then one merges."""
    merge: bool = False
    """Finish what the machines of `shard` made; refused if one of them is not through."""
    repair: str | None = None
    """A prepared folder: make anew its files that are missing or damaged, and nothing else. Every other
    setting is then the folder's own."""

    def complaints(self) -> Iterator[str]:
        yield from super().complaints()
        if self.shard is not None:
            try:
                ShardOf.parse(self.shard)
            except ValueError:
                yield f"shard={self.shard!r} is impossible: write I/N with I from 1 to N, e.g. shard=1/4"
        if self.data.prepared is not None and (self.shard is not None or self.merge):
            yield f"data.prepared={self.data.prepared!r} is prepared already: leave shard and merge out"
        if (self.shard is not None) + self.merge + (self.repair is not None) > 1:
            yield "shard, merge and repair are three commands: write one of them"
