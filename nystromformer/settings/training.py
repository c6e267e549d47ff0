"""Settings of the training loop, its start and its trackers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

PRECISIONS = ("auto", "bf16", "float32")
TRACKERS = ("none", "wandb", "tensorboard")
FULL_DISK = ("stop", "continue")
PARALLEL = ("ddp", "fsdp")
CONVOLUTIONS = ("fitted", "scaled", "reconstructed", "zero")
POSITIONS = ("tile", "interpolate")


@dataclass
class TrainingSettings:
    """One optimizer step sees `global_batch_size` examples, however many devices share them."""

    steps: int = 100_000
    max_minutes: float | None = None
    """End after so many minutes if the steps are not done; the rate then decays over the minutes. Ten seconds
    after the first step the run says whether they will be."""
    global_batch_size: int = 256
    micro_batch_size: int | None = None
    """Examples a device takes at once, the rest is accumulated; empty takes a group of like length, see
    length_groups, or its whole share where that is less, and of either at most 65,536 tokens."""
    length_groups: int = 4
    """A global batch is so many groups of rows of like length, each group drawn from 16 batches' rows, so
    that micro-batches hold little padding; 0 draws rows whatever their length."""
    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-6
    weight_decay: float = 0.01
    """Applied to weight matrices, not to biases and norms."""
    warmup_steps: int = 10_000
    gradient_clipping: float | None = 1.0
    """Largest allowed gradient norm; empty for no clipping."""
    precision: str = "auto"
    """`auto` is bf16 where the device computes it fast, else float32; weights stay float32."""
    tf32: bool = False
    """Let a GPU round the factors of float32 products to 10 bits, the pseudoinverse's among them."""
    compile: bool = False
    """Compile the model with torch.compile, in place; its shapes are then static."""
    static_shapes: bool = False
    """Pad rows to one of at most 8 widths, and predictions to a fixed number, so that shapes repeat."""
    deterministic: bool = False
    """Take only algorithms that give the same bits in every run; some are slower."""
    parallel: str = "ddp"
    """How several processes share the model: `ddp`, a copy each, or `fsdp`, a slice of every layer each."""
    max_skipped_steps: int = 10
    """Steps with a loss or gradient that is not finite change nothing; after so many the run stops."""
    seed: int = 0
    loader_workers: int = 2
    """Processes that draw pairs and masks ahead of the training; 0 draws in the training process."""
    log_every: int = 50
    validate_every: int = 2_000
    validation_examples: int = 2_048
    """How many held-out examples each validation reads, always the same ones."""
    checkpoint_every: int = 2_000
    keep_checkpoints: int = 2
    """How many of the newest to keep."""
    keep_best: bool = True
    """Keep also the checkpoint with the lowest validation loss, of those written where one was measured."""
    on_full_disk: str = "stop"
    """What a checkpoint that cannot be written does: `stop` the run, or say so and `continue`."""
    approximation_error_every: int = 0
    """Every so many steps, measure ‖S − Ŝ‖ / ‖S‖ of each layer and head on held-out rows; 0 for never."""
    approximation_error_examples: int = 8
    """How many held-out rows that reads, always the same ones; each costs exact attention once."""
    profile_steps: int = 0
    """Trace so many steps, from the third on, into the run folder's `profile/`."""

    @property
    def fixed_shapes(self) -> bool:
        """Whether batches come in a few shapes: asked for, or because each is compiled for."""
        return self.static_shapes or self.compile

    def complaints(self) -> Iterator[str]:
        for name in (
            "steps",
            "global_batch_size",
            "log_every",
            "validate_every",
            "validation_examples",
            "checkpoint_every",
            "keep_checkpoints",
            "approximation_error_examples",
        ):
            if getattr(self, name) < 1:
                yield f"training.{name}={getattr(self, name)} is impossible: write at least 1"
        for name in (
            "length_groups",
            "loader_workers",
            "max_skipped_steps",
            "approximation_error_every",
            "profile_steps",
        ):
            if getattr(self, name) < 0:
                yield f"training.{name}={getattr(self, name)} is impossible: write 0 or more"
        for name, known in (
            ("precision", PRECISIONS),
            ("on_full_disk", FULL_DISK),
            ("parallel", PARALLEL),
        ):
            if getattr(self, name) not in known:
                yield f"training.{name}={getattr(self, name)!r} is unknown: write one of {', '.join(known)}"
        if not 0 <= self.warmup_steps <= self.steps:
            yield (
                f"training.warmup_steps={self.warmup_steps} does not fit into "
                f"training.steps={self.steps}: write 0 to {self.steps}"
            )
        if self.max_minutes is not None and self.max_minutes <= 0:
            yield f"training.max_minutes={self.max_minutes} is impossible: write minutes above 0, or null"
        micro = self.micro_batch_size
        if micro is not None and micro < 1:
            yield f"training.micro_batch_size={micro} is impossible: write at least 1, or null"
        if self.learning_rate <= 0:
            yield f"training.learning_rate={self.learning_rate} is impossible: write a rate above 0"
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                yield f"training.{name}={getattr(self, name)} is impossible: write 0 to below 1"
        if self.epsilon <= 0:
            yield f"training.epsilon={self.epsilon} is impossible: write a number above 0"
        if self.weight_decay < 0:
            yield f"training.weight_decay={self.weight_decay} is impossible: write 0 or more"
        if self.gradient_clipping is not None and self.gradient_clipping <= 0:
            yield (
                f"training.gradient_clipping={self.gradient_clipping} is impossible: write a norm "
                "above 0, or null"
            )
        if not 0 <= self.seed < 2**32:
            yield f"training.seed={self.seed} is impossible: write 0 to 4294967295"

    def complaints_on(self, processes: int) -> Iterator[str]:
        """Complaints that depend on how many processes share a global batch."""
        if self.global_batch_size % processes:
            yield (
                f"training.global_batch_size={self.global_batch_size} is not divisible by the "
                f"{processes} processes: write a multiple of {processes}"
            )
            return
        share = self.global_batch_size // processes
        if self.micro_batch_size is not None and share % self.micro_batch_size:
            yield (
                f"training.micro_batch_size={self.micro_batch_size} does not divide the {share} "
                f"examples of one process (training.global_batch_size={self.global_batch_size} over "
                f"{processes}): write a divisor of {share}"
            )


@dataclass
class InitSettings:
    """What the weights start from: `init=scratch|bert|checkpoint`."""

    source: str = "scratch"
    path: str | None = None
    """For `bert` (RoBERTa too) and `checkpoint`: a folder or hub name in transformers' layout, for
    `checkpoint` also a .model or .cp file of the authors' code."""
    output_bias: str = "zero"
    """First bias of the MLM head on `scratch`: `zero`, or `unigram`, the log frequency of each token.
    With it the loss begins at the unigram baseline, and no step is spent on learning frequencies."""
    convolution: str = "fitted"
    """Kernels that the source has not: `fitted` to give back what the landmarks blur, in closed form on
    some training rows; `scaled` fits a factor on each head as well; `reconstructed` the layers' output
    projections, to the exact model's states; `zero` leaves them to the training, and up to num_landmarks
    tokens the model is its BERT."""
    convolution_rows: int = 16
    """Training rows that the kernels are fitted on."""
    positions: str = "tile"
    """How a longer position table is made: `tile` repeats the trained one, so that the first positions mean
    what they did; `interpolate` stretches it."""

    def complaints(self) -> Iterator[str]:
        if self.source not in ("scratch", "bert", "checkpoint"):
            yield f"init.source={self.source!r} is unknown: write scratch, bert or checkpoint"
        if self.output_bias not in ("zero", "unigram"):
            yield f"init.output_bias={self.output_bias!r} is unknown: write zero or unigram"
        elif self.output_bias == "unigram" and self.source != "scratch":
            yield f"init.output_bias=unigram would overwrite that of init={self.source}: write zero"
        for name, known in (("convolution", CONVOLUTIONS), ("positions", POSITIONS)):
            if getattr(self, name) not in known:
                yield f"init.{name}={getattr(self, name)!r} is unknown: write one of {', '.join(known)}"
        if self.convolution_rows < 1:
            yield f"init.convolution_rows={self.convolution_rows} is impossible: write at least 1"
        if self.source in ("bert", "checkpoint") and not self.path:
            yield f"init.path is empty: with init={self.source} write init.path=FOLDER or a hub name"


@dataclass
class TrackingSettings:
    """Where metrics go beside metrics.jsonl."""

    tracker: str = "none"
    project: str = "nystromformer"
    """Project name on Weights & Biases."""

    def complaints(self) -> Iterator[str]:
        if self.tracker not in TRACKERS:
            yield f"tracking.tracker={self.tracker!r} is unknown: write one of {', '.join(TRACKERS)}"
