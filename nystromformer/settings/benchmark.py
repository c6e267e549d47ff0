"""Settings of `nystromformer benchmark`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

WHATS = ("attention",)
DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass
class BenchmarkSettings:
    """One benchmark on the machine at hand, beside the peers, all measured in turn in one process."""

    what: str = "attention"
    """`attention`: one attention module, forward and backward, without its projections."""
    folder: str = "benchmarks"
    """Where `attention_DEVICE.md`, `.json` and `.png` go."""
    lengths: list[int] = field(default_factory=lambda: [512, 1024, 2048, 4096, 8192, 16384])
    """Sequence lengths."""
    tokens: int = 8192
    """Tokens of one batch: the batch size is tokens / length, at least 1."""
    heads: int = 12
    head_dim: int = 64
    landmarks: int = 64
    kernel: int | None = 33
    """Width of the residual convolution, odd; empty for none."""
    repeats: int = 5
    """How often each is timed; the median counts."""
    device: str = "auto"
    """`auto` is the GPU where there is one, else the CPU."""
    dtype: str = "float32"
    """Of queries, keys and values; the Nyström peers run half precision under autocast."""
    largest_matrix: float = 0.5
    """Exact attention that stores its matrix is left out where one matrix of scores exceeds so many GB."""
    seed: int = 0

    def complaints(self) -> Iterator[str]:
        for name, value, known in (
            ("what", self.what, WHATS),
            ("device", self.device, DEVICES),
            ("dtype", self.dtype, DTYPES),
        ):
            if value not in known:
                yield f"{name}={value!r} is unknown: write one of {', '.join(known)}"
        if not self.folder:
            yield "folder is empty: write the folder for the results, e.g. folder=benchmarks"
        if not self.lengths:
            yield "lengths=[] measures nothing: write e.g. lengths=[512,1024]"
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
        for name in ("tokens", "heads", "head_dim", "landmarks", "repeats"):
            if getattr(self, name) < 1:
                yield f"{name}={getattr(self, name)} is impossible: write at least 1"
        if self.kernel is not None and (self.kernel < 1 or self.kernel % 2 == 0):
            yield f"kernel={self.kernel} cannot be centred on a token: write an odd width, or null"
        if self.largest_matrix < 0:
            yield f"largest_matrix={self.largest_matrix} is impossible: write 0 or more"
        if not 0 <= self.seed < 2**32:
            yield f"seed={self.seed} is impossible: write 0 to 4294967295"
