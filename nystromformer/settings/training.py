"""Settings of the training loop, its start and its trackers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nystromformer.settings.schema import Section, path, record, result, speed

PRECISIONS = ("auto", "bf16", "float32")
CONVOLUTIONS = ("fitted", "scaled", "reconstructed", "zero")
POSITIONS = ("tile", "interpolate")


@dataclass
class TrainingSettings(Section, at="training"):
    """One optimizer step sees `global_batch_size` examples, however many devices share them."""

    steps: int = result(100_000, at_least=1)
    max_minutes: float | None = result(None, above=0, write="minutes above 0, or null")
    """End after so many minutes if the steps are not done; the rate then decays over the minutes. Ten seconds
    after the first step the run says whether they will be."""
    global_batch_size: int = result(256, at_least=1)
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
    gradient_clipping: float | None = result(1.0, noun="norm", above=0)
    """Largest allowed gradient norm; empty for no clipping."""
    precision: str = result("auto", choices=PRECISIONS)
    """`auto` is bf16 where the device computes it fast, else float32; weights stay float32."""
    tf32: bool = result(False)
    """Let a GPU round the factors of float32 products to 10 bits, the pseudoinverse's among them."""
    compile: bool = speed(False)
    """Compile the model with torch.compile, in place; its shapes are then static."""
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
        """Whether batches come in a few shapes: asked for, or because each is compiled for."""
        return self.static_shapes or self.compile

    def complaints_together(self) -> Iterator[str]:
        if not 0 <= self.warmup_steps <= self.steps:
            yield (
                f"training.warmup_steps={self.warmup_steps} does not fit into "
                f"training.steps={self.steps}: write 0 to {self.steps}"
            )

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
