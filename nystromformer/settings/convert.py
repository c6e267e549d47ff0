"""Settings of `nystromformer convert`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from nystromformer.settings.data import DataSettings
from nystromformer.settings.schema import Section, path, place, result
from nystromformer.settings.training import CONVOLUTIONS, POSITIONS


@dataclass
class ConvertSettings(Section):
    """One checkpoint, written again for this project or for transformers' own class."""

    source: str | None = path(None)
    """A BERT, RoBERTa or Nyströmformer in transformers' layout (folder or hub name), or a .model or .cp file
    of the authors' code."""
    target: str | None = place(None)
    """The folder to write; it must not hold anything yet."""
    attention: str | None = result(None, choices=("nystrom", "softmax"))
    """`nystrom`, the paper's; or `softmax`, exact attention, which transformers' class computes for the
    published checkpoints, whatever their name says. Empty takes the source's, and `nystrom` for a BERT or
    RoBERTa."""
    num_landmarks: int | None = result(None, at_least=1)
    """Landmarks; empty takes the source's, or 64 where it names none."""
    neighbours: int | None = result(None, at_least=0, write="at least 1, 0 for none, or null")
    """Tokens of a block of exact neighbours beside the landmarks; 0 for landmarks alone; empty takes the
    source's."""
    salient_tokens: int | None = result(None, at_least=1)
    """With neighbours: tokens that all attend to exactly, the first and those that the landmarks attend to
    most; empty takes the source's, or 1."""
    conv_kernel_size: int | None = result(None, odd=True)
    """Where the source has no convolution: width of one, all zero, for training to fill. Empty gives 33 to
    what becomes a Nyströmformer."""
    num_attention_heads: int | None = result(None, at_least=1)
    """Authors' file without a convolution: its number of heads, which nothing in it tells."""
    max_length: int | None = result(None, at_least=1)
    """Positions of the table; empty keeps the source's."""
    positions: str = result("tile", choices=POSITIONS)
    """How a longer table is made: `tile` or `interpolate`."""
    tokenizer_path: str | None = path(None)
    """Folder or hub name of a tokenizer to write beside the model; empty takes the source's, if any."""
    layout: str = result("nystromformer", choices=("nystromformer", "transformers"))
    """For whom: this project's classes, or `transformers`' own Nystromformer."""
    nystrom_length: int | None = result(None, at_least=1)
    """layout=transformers: the one length at which its class runs Nyström attention; empty has it run exact
    attention at any length."""

    convolution: str | None = result(None, choices=CONVOLUTIONS)
    """Kernels that the source has not: `zero`, `fitted`, `scaled` or `reconstructed`, as `init.convolution`
    of `pretrain`, on text of `data`. Empty gives `fitted` where `data` names some, else `zero`."""
    convolution_rows: int | None = result(None, at_least=1)
    """Rows of text that they are fitted on; empty gives 16, and 128 to `reconstructed`."""
    data: DataSettings = field(default_factory=lambda: DataSettings(corpus=""))
    """Text to fit and train on."""
    transfer: bool = result(False)
    """Train the new model's hidden states towards those of the source with exact attention, on `data`."""
    steps: int = result(400, at_least=1)
    """Of `transfer`."""
    minutes: float | None = result(10.0, above=0)
    """Most time for `transfer`, whose rate falls to zero by then; null for all its steps."""
    batch_size: int = result(4, at_least=1)
    """Rows of a step of `transfer`."""
    learning_rate: float = result(4e-5, noun="rate", above=0)
    """Highest rate of `transfer`; one that makes the model worse on held-out rows leaves it as it was."""
    trained: str = result("all", choices=("mechanism", "small", "layers", "all"))
    """What `transfer` trains: `mechanism`, the convolution alone; `small`, that, biases and norms; `layers`,
    all but the embeddings and the projections to queries, keys and values; `all` the layers' weights."""

    def unread(self) -> Iterable[str]:
        return () if self.data.corpus else ("data",)

    def complaints_together(self) -> Iterator[str]:
        if not self.source:
            yield "source is empty: write source=FOLDER, a hub name or an authors' file"
        if not self.target:
            yield "target is empty: write target=FOLDER"
        if self.nystrom_length is not None and self.layout != "transformers":
            yield f"nystrom_length={self.nystrom_length} is for layout=transformers: write that, or null"

        yield from self._complaints_about_text()

    @property
    def how(self) -> str:
        """`convolution` with its default resolved."""
        return self.convolution or ("fitted" if self.data.corpus else "zero")

    @property
    def rows(self) -> int:
        """`convolution_rows` with its default resolved."""
        return self.convolution_rows or (128 if self.how == "reconstructed" else 16)

    def _complaints_about_text(self) -> Iterator[str]:
        if self.data.corpus:
            if self.how == "zero" and not self.transfer:
                yield f"data={self.data.corpus} is for convolution=fitted or transfer=true: write one"
        elif self.data.files or self.data.sources:
            yield "data.files and data.sources need their kind: write data=text or data=mixture too"
        elif self.how != "zero" or self.transfer:
            name = "transfer=true" if self.transfer else f"convolution={self.convolution}"
            yield f"{name} needs text: write data=imdb, or data=text 'data.files=[my.txt]'"
