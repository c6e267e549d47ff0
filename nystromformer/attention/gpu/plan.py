"""How large the kernels' blocks are, over how many programs each is spread, and how each is compiled.

Shapes: B rows, H heads, N positions, D head width, M landmarks, K kernel width; S parts of the positions.

Nothing is tuned at run time: the sizes follow from the shapes and from the number of multiprocessors
alone, so that the same call computes the same bits. All of it is looked up at every layer of every step, and
worked out once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from nystromformer.attention.gpu.support import padded
from nystromformer.attention.precision import tf32_allowed

MOST_ON_CHIP = 64
"""Landmarks whose matrices fit on chip; PyTorch's batched products invert larger ones, and all of them on
other chips than Hopper: compiled for Ampere the backward kernel holds nothing in registers."""
TOKENS_TOGETHER = 64
"""Tokens that a program of `means_kernel` reads at once."""
NARROW_TILE = 32
"""Positions that a program of `kernel_gradient_kernel` holds together, where the kernel is no wider."""
TUNED = {
    "gather": {"num_stages": 3},
    "mix": {"maxnreg": 168},
    "spread": {"num_stages": 1, "maxnreg": 128},
    "spread_backward_means": {"num_stages": 3},
    "mix_backward": {"num_stages": 3},
    "gather_backward": {"num_stages": 2},
    "spread_backward_query": {"num_stages": 2},
    "kernel_gradient": {"num_stages": 3},
    "convolution": {"num_stages": 2},
    "near": {"maxnreg": 168},
}
"""The fastest of one to three stages of loads and of any, 168 or 128 registers a thread, each kernel by
itself, at 512 and 8,192 tokens on an H100. With fewer registers more programs fit a multiprocessor, as long
as next to nothing is spilled."""
_OVER_TILES = (
    "gather",
    "spread",
    "gather_backward",
    "spread_backward_query",
    "kernel_gradient",
    "convolution",
)
UNTUNED = {"spread_backward_means": {"num_stages": 3}} | {kernel: {"num_stages": 2} for kernel in _OVER_TILES}
"""The same of few landmarks of wide heads, or many of narrow ones, where fewer registers would be spilled."""
FILLED_TWICE = 4
"""Heads a multiprocessor from which `mix_kernel` waits for a place: before, fewer registers only slow it."""

Constants = dict[str, Any]
"""What a kernel is compiled for."""


@dataclass(frozen=True)
class Sizes:
    """Everything that the kernels' launches follow from."""

    b: int
    h: int
    n: int
    m: int
    d: int
    k: int | None
    dtype: torch.dtype
    masked: bool
    multiprocessors: int
    hopper: bool
    """Whether the matrices of a head were seen to fit on chip, see MOST_ON_CHIP."""
    tf32: bool = False
    """Whether float32 factors may be rounded to TF32."""

    @classmethod
    def of(cls, query: Tensor, mask: Tensor | None, weight: Tensor | None, num_landmarks: int) -> Sizes:
        b, h, n, d = query.shape
        k = None if weight is None else weight.shape[2]
        dtype, tf32 = query.dtype, query.dtype == torch.float32 and tf32_allowed()
        return _known_sizes(b, h, n, num_landmarks, d, k, dtype, mask is not None, *chip(query.device), tf32)

    @property
    def programs(self) -> int:
        """Programs over tiles that keep the device busy."""
        return 8 * self.multiprocessors

    @cached_property
    def tile(self) -> int:
        """Positions that a program holds together."""
        return tile_of(self.dtype, self.m, self.d)

    @cached_property
    def on_chip(self) -> bool:
        """Whether one program inverts a head's matrix."""
        return inverts_on_chip(self.m, self.hopper)

    @property
    def window(self) -> int:
        """Positions around a tile that the convolution reads."""
        return self.tile if self.k in (None, 1) else 2 * self.tile

    @property
    def narrow_tile(self) -> int:
        """Positions that a program of the convolution's own gradient holds together."""
        return NARROW_TILE if (self.k or 1) <= NARROW_TILE + 1 else self.tile

    @cached_property
    def warps(self) -> int:
        return 4 if padded(self.m) * padded(self.d) <= 64 * 64 else 8

    @cached_property
    def scale(self) -> float:
        return self.d**-0.5

    @cached_property
    def score_scale(self) -> float:
        """For scores in units of log 2."""
        return self.scale * math.log2(math.e)

    @property
    def half(self) -> bool:
        """Whether the inputs are of half precision, see `inversion`."""
        return self.dtype != torch.float32

    @cached_property
    def parts(self) -> tuple[int, int]:
        """(S, tokens of each), of the kernels that sum over tokens."""
        return self.divided(self.programs)

    @cached_property
    def fine_parts(self) -> tuple[int, int]:
        """The same of those that write tokens."""
        return self.divided(2 * self.programs)

    def divided(self, programs: int) -> tuple[int, int]:
        """(S, tokens of each) that make at least so many programs, where there are tiles enough."""
        tiles = -(-self.n // self.tile)
        parts = min(tiles, -(-programs // (self.b * self.h)))
        tiles_of_part = -(-tiles // parts)
        return -(-tiles // tiles_of_part), tiles_of_part * self.tile

    @cached_property
    def constants(self) -> dict[str, Constants]:
        """Of each kernel, by its name."""
        of_heads = constants_of_heads(self.m, self.d, warps=4)
        product, precision, mix_precision = precision_of(self.dtype, self.tf32)
        tiles = {
            "M": self.m, "M_PAD": padded(self.m), "D": self.d, "D_PAD": padded(self.d),
            "MASKED": self.masked, "P": self.tile, "PRECISION": precision,
            "num_warps": self.warps, "num_stages": 1,
        }  # fmt: skip
        mixing = tiles | {"MIX": product, "MIX_PRECISION": mix_precision}
        convolving = {"K": self.k or 1, "W": self.window}
        both = mixing | convolving | {"CONVOLVED": self.k is not None}
        inverting = of_heads | inversion(self.half) | {"MASKED": self.masked, "INVERTS": self.on_chip}
        alone = {name: tiles[name] for name in ("D", "D_PAD", "P", "PRECISION", "num_stages")}
        alone |= convolving | {"num_warps": 4}
        narrow = self.narrow_tile
        narrower = {"P": narrow, "W": narrow if self.k == 1 else 2 * narrow, "MASKED": self.masked}
        found = {
            "gather": tiles,
            "join": of_heads | {"MASKED": self.masked},
            "mix": inverting,
            "spread": both,
            "spread_backward_means": mixing,
            "mix_backward": inverting,
            "gather_backward": both | {"num_warps": max(self.warps, padded(self.d) // 16)},
            "spread_backward_query": mixing,
            "kernel_gradient": alone | narrower,
            "convolution": alone,
        }
        return {name: constants | self.tuned(name) for name, constants in found.items()}

    def tuned(self, kernel: str) -> Constants:
        """How a kernel is compiled, where that was measured: bfloat16 on a Hopper GPU."""
        if not (self.hopper and self.dtype == torch.bfloat16 and self.warps == 4):
            return {}
        if max(self.m, self.d) > 64:
            return UNTUNED.get(kernel, {})
        if kernel == "mix" and self.b * self.h < FILLED_TWICE * self.multiprocessors:
            return {}
        return TUNED.get(kernel, {})

    @cached_property
    def means(self) -> tuple[int, Constants]:
        """Along a head, programs of `means_kernel`, and what it is compiled for."""
        return plan_of_means(self.n, self.m, self.d, self.masked)


@lru_cache(64)
def _known_sizes(*sizes: Any) -> Sizes:
    return Sizes(*sizes)


def plan_of_means(n: int, m: int, d: int, masked: bool) -> tuple[int, Constants]:
    """See `Sizes.means`."""
    together = max(1, TOKENS_TOGETHER // triton.next_power_of_2(-(-n // m)))
    return triton.cdiv(m, together), {
        "M": m, "D": d, "D_PAD": padded(d), "MASKED": masked,
        "J": together, "T": TOKENS_TOGETHER // together, "num_warps": 4,
    }  # fmt: skip


def inverts_on_chip(m: int, hopper: bool) -> bool:
    """See MOST_ON_CHIP."""
    return hopper and padded(m) <= MOST_ON_CHIP


def inversion(half: bool) -> Constants:
    """How the m × m matrices are multiplied.

    Beside half-precision inputs the factors of the iteration have float16's 11 digits, as those of TF32 have,
    at half the room and twice the speed: off by 1e-3 in the output and in the scores' gradients of a trained
    BERT's heads, where bfloat16 would be by 1e-2. Else three products of TF32, as exact as float32.
    """
    return {"TYPE": tl.float16, "PRECISION": "tf32"} if half else {"TYPE": tl.float32, "PRECISION": "tf32x3"}


def constants_of_heads(m: int, d: int, warps: int) -> Constants:
    """Of the kernels that hold a head's landmarks alone."""
    return {
        "M": m, "M_PAD": padded(m), "D": d, "D_PAD": padded(d), "num_warps": warps, "num_stages": 1,
    }  # fmt: skip


def room_for_iterates(means: Tensor, iterations: int, half: bool) -> tuple[int, Tensor]:
    """How many programs go back through the iteration of all heads, and where they lay down its steps."""
    b, h, m, _ = means.shape
    multiprocessors, _ = chip(means.device)
    programs = min(b * h, 2 * multiprocessors)  # two of 128 threads and 255 registers fill one
    dtype = torch.float16 if half else torch.float32
    return programs, means.new_empty(programs * iterations * 3 * padded(m) ** 2, dtype=dtype)


def tile_of(dtype: torch.dtype, m: int, d: int) -> int:
    """Positions that a program holds together; a convolution may be one wider."""
    return 64 if dtype == torch.bfloat16 and padded(m) * padded(d) <= 64 * 64 else 32


def precision_of(dtype: torch.dtype, tf32: bool) -> tuple[Any, str, str]:
    """The type of products with X and its like, how inputs are multiplied, and how those are.

    X can exceed float16's range, so that such products take float32's, with as many digits.
    """
    if dtype == torch.bfloat16:
        return tl.bfloat16, "tf32", "tf32"  # a precision says nothing of bfloat16
    if dtype == torch.float16:
        return tl.float32, "tf32", "tf32"
    precision = "tf32" if tf32 else "tf32x3"
    return tl.float32, precision, precision


@lru_cache
def chip(device: torch.device) -> tuple[int, bool]:
    """(multiprocessors, whether it is Hopper)."""
    if device.type != "cuda":
        return 1, True  # Triton's interpreter
    found = torch.cuda.get_device_properties(device)
    return found.multi_processor_count, found.major == 9
