"""Scales of `nystromformer reproduce`: how large each result is made. Their values stand in `configs/scale/`.

A section is named as its result; a result without sizes of its own has none. Words are those of
`nystromformer pretrain` and `nystromformer finetune`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields


@dataclass
class EfficiencyScale:
    """table=efficiency."""

    lengths: list[int] = field(default_factory=lambda: [512, 1024, 2048, 4096, 8192])
    """Tokens of the one sequence that is measured."""
    repeats: int = 5
    """How often each is timed, all in turn; the median counts."""
    heads: int = 12
    """Heads of the module; its width is heads · head_dim."""
    head_dim: int = 64
    """Width of a head."""
    kernel: int | None = 33
    """Width of Nyströmformer's residual convolution, odd; null for none."""
    dtype: str = "float32"
    """Of weights and input: float32, bfloat16 or float16."""
    largest_gb: float = 24.0
    """Rows that need more memory than so many GB, by the size of the matrices that they store, are
    stated as out of memory and not tried."""

    def complaints(self) -> Iterator[str]:
        yield from _too_small(self, "scale.efficiency", lengths=257, repeats=1, heads=1, head_dim=1)
        if self.kernel is not None and (self.kernel < 1 or self.kernel % 2 == 0):
            yield f"scale.efficiency.kernel={self.kernel} has no middle: write an odd number, or null"
        if self.dtype not in ("float32", "bfloat16", "float16"):
            yield f"scale.efficiency.dtype={self.dtype!r} is unknown: write float32, bfloat16 or float16"


@dataclass
class HeadsScale:
    """figure=landmarks, num_landmarks and pseudoinverse: attention matrices of a trained BERT."""

    length: int = 512
    """Tokens of a review; shorter ones are left out, longer ones cut."""
    texts: int = 16
    """Reviews that the errors are averaged over."""
    seeds: int = 3
    """Draws of the uniform landmarks."""
    heads: int = 6
    """How many heads are shown, spread over the layers; errors are of all heads."""
    landmarks: int = 64
    """figure=landmarks and pseudoinverse: number of landmarks."""
    counts: list[int] = field(default_factory=lambda: [16, 64, 256])
    """figure=num_landmarks: the numbers of landmarks."""
    iterations: list[int] = field(default_factory=lambda: [2, 4, 6])
    """figure=pseudoinverse: the iterations that are shown."""
    most_iterations: int = 24
    """figure=pseudoinverse: how far the curve of convergence goes."""

    def complaints(self) -> Iterator[str]:
        yield from _too_small(
            self, "scale.heads", length=8, texts=1, seeds=1, heads=1, landmarks=2, counts=2, iterations=1
        )
        for count in (self.landmarks, *self.counts):
            if count >= self.length:
                yield f"scale.heads: {count} landmarks of {self.length} tokens are exact: write fewer"


@dataclass
class NystromTutorialScale:
    """figure=nystrom_tutorial: a raw matrix of rank `width`."""

    size: int = 50
    """Rows n of the queries and keys."""
    width: int = 10
    """Their width, which is the rank of the matrix."""
    landmarks: list[int] = field(default_factory=lambda: list(range(1, 21)))
    """Numbers of landmarks."""
    draws: int = 1000
    """Random matrices for each number."""

    def complaints(self) -> Iterator[str]:
        yield from _too_small(self, "scale.nystrom_tutorial", size=2, width=1, landmarks=1, draws=2)
        for count in self.landmarks:
            if count > self.size:
                yield f"scale.nystrom_tutorial.landmarks holds {count}: write at most size={self.size}"


@dataclass
class LongerScale:
    """figure=longer: a model, and the same grown to more positions."""

    first: list[str] = field(default_factory=list)
    """Words of the run at the shorter length."""
    second: list[str] = field(default_factory=list)
    """Words of the run at the longer length; init.path is filled in."""


@dataclass
class SmallScale:
    """figure=small: two runs on the same batches."""

    bert: list[str] = field(default_factory=list)
    """Words of the run with exact attention."""
    nystromformer: list[str] = field(default_factory=list)
    """Words of the run with Nyström attention."""


@dataclass
class GlueScale:
    """table=glue: models, and what they are fine-tuned on."""

    bert: list[str] = field(default_factory=list)
    """Words of the pretraining of BERT."""
    nystromformer: list[str] = field(default_factory=list)
    """Words of the pretraining of Nyströmformer at the shorter length."""
    longer: list[str] = field(default_factory=list)
    """Words of its continuation at the longer length; init.path is filled in."""
    finetune: list[str] = field(default_factory=list)
    """Words of every fine-tuning."""


@dataclass
class LraScale:
    """table=lra: Long Range Arena."""

    tasks: list[str] = field(default_factory=lambda: ["listops", "text"])
    """Tasks to train on."""
    attentions: list[str] = field(
        default_factory=lambda: ["softmax", "nystrom", "linformer", "longformer", "performer"]
    )
    """Mechanisms to compare."""


@dataclass
class StartsScale:
    """table=starts."""

    length: int = 512
    """Tokens of a review."""
    rows: int = 16
    """Reviews to fit on, and as many others to measure on."""
    variants: int = 0
    """How many of the variants, from the first; 0 takes all."""

    def complaints(self) -> Iterator[str]:
        yield from _too_small(self, "scale.starts", length=65, rows=1)


@dataclass
class WarmstartScale:
    """table=warmstart: two runs on the same batches."""

    nystrom: list[str] = field(default_factory=list)
    """Words of the run with Nyström attention."""
    exact: list[str] = field(default_factory=list)
    """Words of the run with exact attention."""


@dataclass
class ScaleSettings:
    """How large every result is: `scale=paper|gpu|cpu|smoke`."""

    name: str = "paper"
    """The name that results are filed under."""
    told: str = ""
    """What this scale is and what differs from the paper; the first line of every page."""
    efficiency: EfficiencyScale = field(default_factory=EfficiencyScale)
    heads: HeadsScale = field(default_factory=HeadsScale)
    nystrom_tutorial: NystromTutorialScale = field(default_factory=NystromTutorialScale)
    longer: LongerScale = field(default_factory=LongerScale)
    small: SmallScale = field(default_factory=SmallScale)
    glue: GlueScale = field(default_factory=GlueScale)
    lra: LraScale = field(default_factory=LraScale)
    starts: StartsScale = field(default_factory=StartsScale)
    warmstart: WarmstartScale = field(default_factory=WarmstartScale)

    def complaints(self) -> Iterator[str]:
        if not self.name or "/" in self.name or self.name.startswith("."):
            yield f"scale.name={self.name!r} is no folder name: write letters, digits, - and _"
        for part in fields(self):
            section = getattr(self, part.name)
            if hasattr(section, "complaints"):
                yield from section.complaints()


def _too_small(section: object, place: str, **least: int) -> Iterator[str]:
    """Complaints about numbers below their least, and about lists that are empty or hold such a number."""
    for name, smallest in least.items():
        value = getattr(section, name)
        if value == []:
            yield f"{place}.{name}=[] measures nothing: write e.g. {place}.{name}=[{smallest}]"
        for number in value if isinstance(value, list) else [value]:
            if number < smallest:
                yield f"{place}.{name}: {number} is impossible: write at least {smallest}"
