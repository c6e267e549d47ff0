"""Settings of `nystromformer convert`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nystromformer.settings.training import POSITIONS

LAYOUTS = ("nystromformer", "transformers")
CONVERTED = ("nystrom", "softmax")


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
        width = self.conv_kernel_size
        if width is not None and (width < 1 or width % 2 == 0):
            yield f"conv_kernel_size={width} has no middle: write an odd number"
        if self.nystrom_length is not None and self.layout != "transformers":
            yield f"nystrom_length={self.nystrom_length} is for layout=transformers: write that, or null"
