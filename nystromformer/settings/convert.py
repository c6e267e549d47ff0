"""Settings of `nystromformer convert`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from nystromformer.settings.data import DataSettings
from nystromformer.settings.training import CONVOLUTIONS, POSITIONS

LAYOUTS = ("nystromformer", "transformers")
CONVERTED = ("nystrom", "softmax")
TRAINED = ("mechanism", "small", "layers", "all")


@dataclass
class ConvertSettings:
    """One checkpoint, written again for this project or for transformers' own class."""

    source: str | None = None
    """A BERT, RoBERTa or Nyströmformer in transformers' layout (folder or hub name), or a .model or .cp file
    of the authors' code."""
    target: str | None = None
    """The folder to write; it must not hold anything yet."""
    attention: str | None = None
    """`nystrom`, the paper's; or `softmax`, exact attention, which transformers' class computes for the
    published checkpoints, whatever their name says. Empty takes the source's, and `nystrom` for a BERT or
    RoBERTa."""
    num_landmarks: int | None = None
    """Landmarks; empty takes the source's, or 64 where it names none."""
    neighbours: int | None = None
    """Tokens of a block of exact neighbours beside the landmarks; 0 for landmarks alone; empty takes the
    source's."""
    salient_tokens: int | None = None
    """With neighbours: tokens that all attend to exactly, the first and those that the landmarks attend to
    most; empty takes the source's, or 1."""
    conv_kernel_size: int | None = None
    """Where the source has no convolution: width of one, all zero, for training to fill. Empty gives 33 to
    what becomes a Nyströmformer."""
    num_attention_heads: int | None = None
    """Authors' file without a convolution: its number of heads, which nothing in it tells."""
    max_length: int | None = None
    """Positions of the table; empty keeps the source's."""
    positions: str = "tile"
    """How a longer table is made: `tile` or `interpolate`."""
    tokenizer_path: str | None = None
    """Folder or hub name of a tokenizer to write beside the model; empty takes the source's, if any."""
    layout: str = "nystromformer"
    """For whom: this project's classes, or `transformers`' own Nystromformer."""
    nystrom_length: int | None = None
    """layout=transformers: the one length at which its class runs Nyström attention; empty has it run exact
    attention at any length."""

    convolution: str | None = None
    """Kernels that the source has not: `zero`, `fitted`, `scaled` or `reconstructed`, as `init.convolution`
    of `pretrain`, on text of `data`. Empty gives `fitted` where `data` names some, else `zero`."""
    convolution_rows: int | None = None
    """Rows of text that they are fitted on; empty gives 16, and 128 to `reconstructed`."""
    data: DataSettings = field(default_factory=lambda: DataSettings(corpus=""))
    """Text to fit and train on."""
    transfer: bool = False
    """Train the new model's hidden states towards those of the source with exact attention, on `data`."""
    steps: int = 400
    """Of `transfer`."""
    minutes: float | None = 10.0
    """Most time for `transfer`, whose rate falls to zero by then; null for all its steps."""
    batch_size: int = 4
    """Rows of a step of `transfer`."""
    learning_rate: float = 4e-5
    """Highest rate of `transfer`; one that makes the model worse on held-out rows leaves it as it was."""
    trained: str = "all"
    """What `transfer` trains: `mechanism`, the convolution alone; `small`, that, biases and norms; `layers`,
    all but the embeddings and the projections to queries, keys and values; `all` the layers' weights."""

    def complaints(self) -> Iterator[str]:
        if not self.source:
            yield "source is empty: write source=FOLDER, a hub name or an authors' file"
        if not self.target:
            yield "target is empty: write target=FOLDER"
        choices = (("attention", (*CONVERTED, None)), ("positions", POSITIONS), ("layout", LAYOUTS))
        for name, known in choices:
            if getattr(self, name) not in known:
                words = ", ".join(filter(None, known))
                yield f"{name}={getattr(self, name)!r} is unknown: write one of {words}"
        for name in (
            "num_landmarks",
            "salient_tokens",
            "num_attention_heads",
            "max_length",
            "nystrom_length",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                yield f"{name}={value} is impossible: write at least 1, or null"
        if self.neighbours is not None and self.neighbours < 0:
            yield f"neighbours={self.neighbours} is impossible: write at least 1, 0 for none, or null"
        yield from self._complaints_about_text()
        width = self.conv_kernel_size
        if width is not None and (width < 1 or width % 2 == 0):
            yield f"conv_kernel_size={width} has no middle: write an odd number"
        if self.nystrom_length is not None and self.layout != "transformers":
            yield f"nystrom_length={self.nystrom_length} is for layout=transformers: write that, or null"

    @property
    def how(self) -> str:
        """`convolution` with its default resolved."""
        return self.convolution or ("fitted" if self.data.corpus else "zero")

    @property
    def rows(self) -> int:
        """`convolution_rows` with its default resolved."""
        return self.convolution_rows or (128 if self.how == "reconstructed" else 16)

    def _complaints_about_text(self) -> Iterator[str]:
        if self.convolution is not None and self.convolution not in CONVOLUTIONS:
            yield f"convolution={self.convolution!r} is unknown: write one of {', '.join(CONVOLUTIONS)}"
        if self.trained not in TRAINED:
            yield f"trained={self.trained!r} is unknown: write one of {', '.join(TRAINED)}"
        for name in ("convolution_rows", "steps", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                yield f"{name}={value} is impossible: write at least 1"
        if self.minutes is not None and self.minutes <= 0:
            yield f"minutes={self.minutes:g} is impossible: write a number above 0, or null"
        if self.learning_rate <= 0:
            yield f"learning_rate={self.learning_rate:g} is impossible: write a rate above 0"
        if self.data.corpus:
            yield from self.data.complaints()
            if self.how == "zero" and not self.transfer:
                yield f"data={self.data.corpus} is for convolution=fitted or transfer=true: write one"
        elif self.data.files or self.data.sources:
            yield "data.files and data.sources need their kind: write data=text or data=mixture too"
        elif self.how != "zero" or self.transfer:
            name = "transfer=true" if self.transfer else f"convolution={self.convolution}"
            yield f"{name} needs text: write data=imdb, or data=text 'data.files=[my.txt]'"
