"""Settings of the training loop, its start and its trackers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from nystromformer.settings.schema import Section, path, record, result, speed

PRECISIONS = ("auto", "bf16", "float32")
CONVOLUTIONS = ("fitted", "scaled", "reconstructed", "zero")
POSITIONS = ("tile", "interpolate")
DECAYS = ("linear", "cosine", "sqrt", "none")
SCHEDULE = (
    "learning_rate", "warmup_steps", "warmup_tokens", "decay", "decay_steps", "decay_tokens", "decay_to",
)  # fmt: skip
"""What a schedule of the rate is of. A phase that writes one of them begins a schedule."""


@dataclass
class PhaseSettings(Section):
    """One phase of a run, an entry of `training.phases`.

    What it leaves empty is the run's, see `training.` and `data.`; but a warm-up is of the first phase, and
    a phase that writes nothing of a schedule goes on with the one of the phase before.
    """

    steps: int | None = result(None, at_least=1)
    """Its length in steps."""
    tokens: float | None = result(None, above=0)
    """Its length in real tokens, instead of steps."""
    max_length: int | None = result(None, at_least=8)
    """Tokens of a row, at most model.max_length: of a longer example a window of whole sentences is taken,
    another one in each epoch."""
    global_batch_size: int | None = result(None, at_least=1)
    batch_warmup_from: int | None = result(None, at_least=1)
    batch_warmup_tokens: float | None = result(None, above=0)
    masking_probability: float | None = result(None, noun="share", above=0, below=1)
    weights: list[float] = result([], at_least=0)
    """How often an epoch shows the examples of each source of the corpus, in their order; empty for once."""
    learning_rate: float | None = result(None, noun="rate", above=0)
    warmup_steps: int | None = result(None, at_least=0)
    warmup_tokens: float | None = result(None, above=0)
    decay: str | None = result(None, choices=DECAYS)
    decay_steps: int | None = result(None, at_least=1)
    decay_tokens: float | None = result(None, above=0)
    decay_to: float | None = result(None, at_least=0, at_most=1)

    @property
    def begins_schedule(self) -> bool:
        """Whether it writes anything of a schedule."""
        return any(getattr(self, name) is not None for name in SCHEDULE)

    def complaints(self, at: str | None = None) -> Iterator[str]:
        yield from super().complaints(at)
        if (self.steps is None) == (self.tokens is None):
            yield f"{at}steps and {at}tokens: write one of them"
        for name in ("warmup", "decay"):
            if None not in (getattr(self, f"{name}_steps"), getattr(self, f"{name}_tokens")):
                yield f"{at}{name}_steps and {at}{name}_tokens: write one of them"
        if self.weights and not any(weight > 0 for weight in self.weights):
            yield f"{at}weights={self.weights} leave no example: write one above 0"


@dataclass
class TrainingSettings(Section, at="training"):
    """One optimizer step sees `global_batch_size` examples, however many devices share them."""

    steps: int = result(100_000, at_least=1)
    tokens: float | None = result(None, above=0)
    """End after so many real tokens instead of `steps`, which is then not read. Here and below, tokens become
    steps by the mean length of the corpus' rows."""
    phases: list[PhaseSettings] = result([])
    """A run as a list of phases, each with a length and what differs in it; steps and tokens are then not
    read. See docs/training.md; for instance training.phases=[{steps:900,max_length:128},{steps:100}]."""
    max_minutes: float | None = result(None, above=0, write="minutes above 0, or null")
    """End after so many minutes if the steps are not done; the rate then decays over the minutes. Ten seconds
    after the first step the run says whether they will be."""
    global_batch_size: int = result(256, at_least=1)
    batch_warmup_from: int | None = result(None, at_least=1)
    """Examples of the first step's batch, a divisor of global_batch_size: the batch grows by as many at a
    time over batch_warmup_tokens."""
    batch_warmup_tokens: float | None = result(None, above=0)
    micro_batch_size: int | None = speed(None, at_least=1)
    """Examples a device takes at once, the rest is accumulated; empty takes a group of like length, see
    length_groups, or its whole share where that is less, and of either at most 65,536 tokens."""
    length_groups: int = result(4, at_least=0)
    """A global batch is so many groups of rows of like length, each group drawn from 16 batches' rows, so
    that micro-batches hold little padding; 0 draws rows whatever their length."""
    learning_rate: float = result(1e-4, noun="rate", above=0)
    beta1: float = result(0.9, at_least=0, below=1)
    beta2: float = result(0.999, at_least=0, below=1)
    epsilon: float = result(1e-6, above=0)
    weight_decay: float = result(0.01, at_least=0)
    """Applied to weight matrices, not to biases and norms."""
    warmup_steps: int = result(10_000)
    warmup_tokens: float | None = result(None, above=0)
    """The warm-up in real tokens instead of warmup_steps, which is then not read."""
    decay: str = result("linear", choices=DECAYS)
    """How the rate falls at the end: `linear`, `cosine`, `sqrt` (1 − √ of the share that is over) or `none`,
    which keeps it constant."""
    decay_steps: int | None = result(None, at_least=1)
    """How many of the last steps decay (warm-up, stable, decay); empty for all after the warm-up."""
    decay_tokens: float | None = result(None, above=0)
    """The same in real tokens, instead of decay_steps, which is then not read."""
    decay_to: float = result(0.0, at_least=0, at_most=1)
    """The share of the rate that is left at the end."""
    gradient_clipping: float | None = result(1.0, noun="norm", above=0)
    """Largest allowed gradient norm; empty for no clipping."""
    precision: str = result("auto", choices=PRECISIONS)
    """`auto` is bf16 where the device computes it fast, else float32; weights stay float32."""
    tf32: bool = result(False)
    """Let a GPU round the factors of float32 products to 10 bits, the pseudoinverse's among them."""
    compile: bool = speed(False)
    """Compile the model with torch.compile, in place; its shapes are then static."""
    cuda_graphs: bool = speed(False)
    """Record a GPU's passes for each shape of micro-batches, and replay them at one launch: for small
    models, whose kernels it would wait for. One process; no model.gradient_checkpointing; static shapes."""
    static_shapes: bool = speed(False)
    """Pad rows to one of at most 8 widths, and predictions to a fixed number, so that shapes repeat."""
    deterministic: bool = speed(False)
    """Take only algorithms that give the same bits in every run; some are slower."""
    parallel: str = speed("ddp", choices=("ddp", "fsdp"))
    """How several processes share the model: `ddp`, a copy each, or `fsdp`, a slice of every layer each."""
    max_skipped_steps: int = record(10, at_least=0)
    """Steps with a loss or gradient that is not finite change nothing; after so many the run stops."""
    seed: int = result(0, at_least=0, at_most=2**32 - 1)
    loader_workers: int = speed(2, at_least=0)
    """Processes that draw pairs and masks ahead of the training; 0 draws in the training process."""
    log_every: int = record(50, at_least=1)
    validate_every: int = record(2_000, at_least=1)
    validation_examples: int = result(2_048, at_least=1)
    """How many held-out examples each validation reads, always the same ones."""
    checkpoint_every: int = record(2_000, at_least=1)
    keep_checkpoints: int = record(2, at_least=1)
    """How many of the newest to keep."""
    keep_best: bool = record(True)
    """Keep also the checkpoint with the lowest validation loss, of those written where one was measured."""
    on_full_disk: str = record("stop", choices=("stop", "continue"))
    """What a checkpoint that cannot be written does: `stop` the run, or say so and `continue`."""
    approximation_error_every: int = record(0, at_least=0)
    """Every so many steps, measure ‖S − Ŝ‖ / ‖S‖ of each layer and head on held-out rows; 0 for never."""
    approximation_error_examples: int = record(8, at_least=1)
    """How many held-out rows that reads, always the same ones; each costs exact attention once."""
    profile_steps: int = record(0, at_least=0)
    """Trace so many steps, from the third on, into the run folder's `profile/`."""

    @property
    def fixed_shapes(self) -> bool:
        """Whether batches come in a few shapes: asked for, or because each is compiled for or recorded."""
        return self.static_shapes or self.compile or self.cuda_graphs

    def unread(self) -> Iterable[str]:
        if self.phases:
            yield from ("steps", "tokens")
        elif self.tokens is not None:
            yield "steps"
        for name in ("warmup", "decay"):
            if getattr(self, f"{name}_tokens") is not None:
                yield f"{name}_steps"

    def complaints_together(self) -> Iterator[str]:
        unread = set(self.unread())
        most = math.inf if "steps" in unread else self.steps
        if "warmup_steps" not in unread and not 0 <= self.warmup_steps <= most:
            where = "" if "steps" in unread else f" into training.steps={self.steps}"
            allowed = "0 or more" if "steps" in unread else f"0 to {self.steps}"
            yield f"training.warmup_steps={self.warmup_steps} does not fit{where}: write {allowed}"
        for number, phase in enumerate(self.phases):
            yield from phase.complaints(f"training.phases[{number}].")
        for number, phase in enumerate(self.filled_phases()):
            start, size = phase.batch_warmup_from, phase.global_batch_size
            keys = [self.key_of(number, f"batch_warmup_{end}") for end in ("from", "tokens")]
            if (start is None) != (phase.batch_warmup_tokens is None):
                yield f"{keys[0]} and {keys[1]} go together: write both or neither"
            elif start and size and size % start:
                whole = self.key_of(number, "global_batch_size")
                yield f"{keys[0]}={start} does not divide {whole}={size}: write a divisor of {size}"

    def filled_phases(self) -> list[PhaseSettings]:
        """The phases with what they leave empty; of a run without any, the one that it is.

        A later phase that begins no schedule has an empty one.
        """
        own = [replace(phase) for phase in self.phases]
        for number, phase in enumerate(own or [PhaseSettings()]):
            names = ["global_batch_size"]
            if number == 0:
                names += ["batch_warmup_from", "batch_warmup_tokens"]
                names += [] if self.phases else ["tokens" if self.tokens is not None else "steps"]
                for name in ("warmup", "decay"):
                    both = [f"{name}_tokens", f"{name}_steps"]
                    if not any(getattr(phase, each) is not None for each in both):
                        names.append(both[0] if getattr(self, both[0]) is not None else both[1])
            if number == 0 or phase.begins_schedule:
                names += ["learning_rate", "decay", "decay_to"]
            blank = {name: getattr(self, name) for name in names if getattr(phase, name) is None}
            own[number : number + 1] = [replace(phase, **blank)]
        return own

    @property
    def in_tokens(self) -> bool:
        """Whether a length is in tokens, so that the steps are known once the corpus is."""
        names = ("tokens", "warmup_tokens", "decay_tokens", "batch_warmup_tokens")
        return any(getattr(phase, name) is not None for phase in self.filled_phases() for name in names)

    def key_of(self, phase: int, name: str) -> str:
        """The setting that gives a phase its value, as a user writes it."""
        own = self.phases and getattr(self.phases[phase], name) is not None
        return f"training.phases[{phase}].{name}" if own else f"training.{name}"

    def complaints_on(self, processes: int) -> Iterator[str]:
        """Complaints that depend on how many processes share a global batch."""
        if self.cuda_graphs and processes > 1:
            yield f"training.cuda_graphs=true is for one process, not for {processes}: write false"
        sizes = {
            self.key_of(number, name): size
            for number, phase in enumerate(self.filled_phases())
            for name in ("global_batch_size", "batch_warmup_from")
            if (size := getattr(phase, name)) is not None
        }
        for key, size in sizes.items():
            share, left = divmod(size, processes)
            if left:
                yield (
                    f"{key}={size} is not divisible by the {processes} processes: write a multiple of "
                    f"{processes}"
                )
            elif self.micro_batch_size is not None and share % self.micro_batch_size:
                yield (
                    f"training.micro_batch_size={self.micro_batch_size} does not divide the {share} "
                    f"examples of one process ({key}={size} over {processes}): write a divisor of {share}"
                )


def complaints_about_graphs(cuda_graphs: bool, gradient_checkpointing: bool) -> Iterator[str]:
    if cuda_graphs and gradient_checkpointing:
        yield (
            "training.cuda_graphs=true cannot record what model.gradient_checkpointing=true computes again: "
            "write false for one of them"
        )


@dataclass
class InitSettings(Section, at="init"):
    """What the weights start from: `init=scratch|bert|checkpoint`."""

    source: str = result(
        "scratch", choices=("scratch", "bert", "checkpoint"), write="scratch, bert or checkpoint"
    )
    path: str | None = path(None)
    """For `bert` (RoBERTa too) and `checkpoint`: a folder or hub name in transformers' layout, for
    `checkpoint` also a .model or .cp file of the authors' code."""
    output_bias: str = result("zero", choices=("zero", "unigram"), write="zero or unigram")
    """First bias of the MLM head on `scratch`: `zero`, or `unigram`, the log frequency of each token.
    With it the loss begins at the unigram baseline, and no step is spent on learning frequencies."""
    convolution: str = result("fitted", choices=CONVOLUTIONS)
    """Kernels that the source has not: `fitted` to give back what the landmarks blur, in closed form on
    some training rows; `scaled` fits a factor on each head as well; `reconstructed` the layers' output
    projections, to the exact model's states; `zero` leaves them to the training, and up to num_landmarks
    tokens the model is its BERT."""
    convolution_rows: int = result(16, at_least=1)
    """Training rows that the kernels are fitted on."""
    positions: str = result("tile", choices=POSITIONS)
    """How a longer position table is made: `tile` repeats the trained one, so that the first positions mean
    what they did; `interpolate` stretches it."""

    def complaints_together(self) -> Iterator[str]:
        if self.output_bias == "unigram" and self.source != "scratch":
            yield f"init.output_bias=unigram would overwrite that of init={self.source}: write zero"
        if self.source in ("bert", "checkpoint") and not self.path:
            yield f"init.path is empty: with init={self.source} write init.path=FOLDER or a hub name"


@dataclass
class TrackingSettings(Section, at="tracking"):
    """Where metrics go beside metrics.jsonl."""

    tracker: str = record("none", choices=("none", "wandb", "tensorboard"))
    project: str = record("nystromformer")
    """Project name on Weights & Biases."""
