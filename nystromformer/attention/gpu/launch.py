"""The order of the kernels, how large their blocks are, and over how many programs each is spread.

Shapes: B rows, H heads, N positions, D head width, M landmarks, K kernel width; S parts of the positions.

Nothing is tuned at run time: the sizes follow from the shapes and from the number of multiprocessors
alone, so that the same call computes the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from nystromformer.attention.gpu import products
from nystromformer.attention.gpu.convolution import kernel_gradient_kernel
from nystromformer.attention.gpu.gather import gather_backward_kernel, gather_kernel
from nystromformer.attention.gpu.landmarks import means_kernel
from nystromformer.attention.gpu.mix import join_kernel, mix_backward_kernel, mix_kernel
from nystromformer.attention.gpu.spread import (
    spread_backward_means_kernel,
    spread_backward_query_kernel,
    spread_kernel,
)
from nystromformer.attention.gpu.support import INTERPRETED, MOST_ENTRIES, padded
from nystromformer.attention.gpu.tiles import Rows
from nystromformer.attention.operator import NystromOperator, empty_like_projections
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
    "spread": {"num_stages": 1, "maxnreg": 128},
    "spread_backward_means": {"num_stages": 3},
    "mix": {"maxnreg": 168},
    "mix_backward": {"num_stages": 3},
    "kernel_gradient": {"num_stages": 3},
}
"""The fastest of one to three stages of loads and of any, 168 or 128 registers a thread, each kernel by
itself, at 512 and 8,192 tokens on an H100; others have two stages. With fewer registers more programs fit a
multiprocessor, as long as next to nothing is spilled."""
FILLED_TWICE = 4
"""Heads a multiprocessor from which `mix_kernel` waits for a place: before, fewer registers only slow it."""
DEVICES = ("cuda", "cpu") if INTERPRETED else ("cuda",)
"""Where the operators run."""


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

    @classmethod
    def of(cls, query: Tensor, mask: Tensor | None, weight: Tensor | None, num_landmarks: int) -> Sizes:
        b, h, n, d = query.shape
        k = None if weight is None else weight.shape[2]
        return _known_sizes(b, h, n, num_landmarks, d, k, query.dtype, mask is not None, *chip(query.device))

    @property
    def programs(self) -> int:
        """Programs over tiles that keep the device busy."""
        return 8 * self.multiprocessors

    @cached_property
    def tile(self) -> int:
        """Positions that a program holds together."""
        return tile_of(self.dtype, self.m, self.d)

    @property
    def on_chip(self) -> bool:
        """Whether one program inverts a head's matrix."""
        return inverts_on_chip(self.m, self.hopper)

    @property
    def window(self) -> int:
        """Positions around a tile that the convolution reads."""
        return self.tile if self.k in (None, 1) else 2 * self.tile

    @cached_property
    def warps(self) -> int:
        return 4 if padded(self.m) * padded(self.d) <= 64 * 64 else 8

    @property
    def scale(self) -> float:
        return self.d**-0.5

    @property
    def score_scale(self) -> float:
        """For scores in units of log 2."""
        return self.scale * math.log2(math.e)

    @property
    def half(self) -> bool:
        """Whether the inputs are of half precision, see `inversion`."""
        return self.dtype != torch.float32

    def parts(self, programs: int) -> tuple[int, int]:
        """(S, tokens of each) that make at least so many programs, where there are tiles enough."""
        tiles = -(-self.n // self.tile)
        parts = min(tiles, -(-programs // (self.b * self.h)))
        tiles_of_part = -(-tiles // parts)
        return -(-tiles // tiles_of_part), tiles_of_part * self.tile

    @cached_property
    def constants(self) -> dict[str, Any]:
        """Of every kernel over tiles."""
        mix, precision, mix_precision = precision_of(self.dtype)
        return {
            "M": self.m, "M_PAD": padded(self.m), "D": self.d, "D_PAD": padded(self.d),
            "MASKED": self.masked, "P": self.tile, "MIX": mix, "PRECISION": precision,
            "MIX_PRECISION": mix_precision, "num_warps": self.warps, "num_stages": 1,
        }  # fmt: skip

    def tuned(self, kernel: str) -> dict[str, Any]:
        """How a kernel is compiled, where that was measured: bfloat16 on a Hopper GPU, heads of up to 64."""
        if not (self.hopper and self.dtype == torch.bfloat16 and self.warps == 4):
            return {}
        if kernel == "mix" and self.b * self.h < FILLED_TWICE * self.multiprocessors:
            return {}
        return TUNED.get(kernel, {"num_stages": 2})


@lru_cache(64)
def _known_sizes(*sizes: Any) -> Sizes:
    """What follows from them is looked up at every layer of every step."""
    return Sizes(*sizes)


def inverts_on_chip(m: int, hopper: bool) -> bool:
    """See MOST_ON_CHIP."""
    return hopper and padded(m) <= MOST_ON_CHIP


def inversion(half: bool) -> dict[str, Any]:
    """How the m × m matrices are multiplied.

    Beside half-precision inputs the factors of the iteration have float16's 11 digits, as those of TF32 have,
    at half the room and twice the speed: off by 1e-3 in the output and in the scores' gradients of a trained
    BERT's heads, where bfloat16 would be by 1e-2. Else three products of TF32, as exact as float32.
    """
    return {"TYPE": tl.float16, "PRECISION": "tf32"} if half else {"TYPE": tl.float32, "PRECISION": "tf32x3"}


def constants_of_heads(m: int, d: int, warps: int) -> dict[str, Any]:
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


@dataclass(eq=False)
class Attention(NystromOperator):
    """What the backward pass needs: Q̃ and K̃, Z, B̃ V, X, and B̃'s normalizer."""

    name = "nystrom_attention_gpu"
    device_types = DEVICES

    def empty(self) -> tuple[Tensor, ...]:
        (b, h, _, d), m = self.query.shape, self.num_landmarks
        shapes = ((2, b, h, m, d), (b, h, m, m), (b, h, m, d), (b, h, m, d), (b, h, m))
        kept = (self.query.new_empty(shape, dtype=torch.float32) for shape in shapes)
        return empty_like_projections(self.query), *kept

    def forward(self) -> tuple[Tensor, ...]:
        sizes, rows, weight = self._sizes(), self._rows(), self._weight()
        b, h, n, m, d = sizes.b, sizes.h, sizes.n, sizes.m, sizes.d
        query, key, value = map(rowwise, (self.query, self.key, self.value))
        out, means, inverse, gathered, mixed, normalizer = self.empty()
        write_means(query, key, rows, means[:1])

        constants = sizes.constants
        for_gather = {name: x for name, x in constants.items() if not name.startswith("MIX")}
        parts, tokens = sizes.parts(sizes.programs)
        sums = query.new_empty(2, b, h, parts, m, d, dtype=torch.float32)
        top, total = query.new_empty(2, b, h, parts, m, dtype=torch.float32)
        gather_kernel[(b * h, parts)](
            *strided(key), *strided(value), means[0], rows.segment_BN, rows.count_B, *sums, top, total,
            h, n, tokens, sizes.score_scale, **(for_gather | sizes.tuned("gather")),
        )  # fmt: skip
        in_parts, of_heads = (*sums, top, total), constants_of_heads(m, d, warps=4)
        on_chip = sizes.on_chip
        if not on_chip:
            join_kernel[(b * h,)](
                *in_parts, rows.count_B, gathered, means[1], normalizer, h, n, parts,
                MASKED=sizes.masked, **of_heads,
            )  # fmt: skip
            products.mix(means, gathered, inverse, mixed, self.iterations)
        if on_chip or sizes.masked:
            mix_kernel[(b * h,)](
                *in_parts, *strided(value), rows.first_BM, rows.count_B, means[0], gathered, means[1],
                normalizer, inverse, mixed, h, n, parts, self.iterations, sizes.scale,
                MASKED=sizes.masked, INVERTS=on_chip,
                **inversion(sizes.half), **(of_heads | sizes.tuned("mix")),
            )  # fmt: skip

        parts, tokens = sizes.parts(2 * sizes.programs)
        spread_kernel[(b * h, parts)](
            *strided(query), *strided(value), means[1], mixed, weight, rows.segment_BN, rows.count_B, out,
            h, n, tokens, sizes.score_scale,
            K=sizes.k or 1, CONVOLVED=weight is not None, W=sizes.window,
            **(constants | sizes.tuned("spread")),
        )  # fmt: skip
        return out, means, inverse, gathered, mixed, normalizer

    def backward(self, grad_out: Tensor, kept: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        means, inverse, gathered, mixed, normalizer = kept
        sizes, rows, weight = self._sizes(), self._rows(), self._weight()
        b, h, n, m, d = sizes.b, sizes.h, sizes.n, sizes.m, sizes.d
        tensors = (grad_out.to(self.query.dtype), self.query, self.key, self.value)
        grad_out, query, key, value = map(rowwise, tensors)
        constants = sizes.constants
        grad_query, grad_key, grad_value = (empty_like_projections(query) for _ in range(3))
        parts, tokens = sizes.parts(sizes.programs)
        fine_parts, fine_tokens = sizes.parts(2 * sizes.programs)
        # out = F̃ X
        grad_mixed_parts, grad_key_parts = means.new_empty(2, b, h, parts, m, d)
        spread_backward_means_kernel[(b * h, parts)](
            *strided(grad_out), *strided(query), means[1], mixed, rows.segment_BN, rows.count_B,
            grad_mixed_parts, grad_key_parts, h, n, tokens, sizes.scale, sizes.score_scale,
            **(constants | sizes.tuned("spread_backward_means")),
        )  # fmt: skip
        # X = Z Y and Z ≈ Ã⁺
        grad_mixed, grad_gathered, grad_key_means = means.new_empty(3, b, h, m, d)
        delta = torch.empty_like(normalizer)
        grad_query_means = means.new_empty(b, h, m, d)
        grad_query_parts = means.new_empty(b, h, parts, m, d)
        on_chip = sizes.on_chip
        programs, steps = room_for_iterates(means[0], self.iterations if on_chip else 0, sizes.half)
        mix_backward_kernel[(programs,)](
            grad_mixed_parts, grad_key_parts, means[0], means[1], inverse, gathered, rows.count_B, steps,
            grad_mixed, grad_gathered, delta, grad_key_means, grad_query_means,
            b, h, n, parts, self.iterations, sizes.scale, MASKED=sizes.masked, INVERTS=on_chip,
            **inversion(sizes.half), **(constants_of_heads(m, d, warps=4) | sizes.tuned("mix_backward")),
        )  # fmt: skip
        if not on_chip:
            products.mix_backward(
                grad_mixed, means, inverse, gathered, rows.count_B, grad_gathered, delta, grad_key_means,
                grad_query_means, self.iterations,
            )  # fmt: skip
        # Y = B̃ V
        gather_backward_kernel[(b * h, parts)](
            *strided(grad_out), *strided(key), *strided(value), means[0], normalizer, grad_gathered, delta,
            grad_key_means, grad_mixed, grad_query_means, weight, rows.segment_BN, rows.count_B,
            grad_key, grad_value, grad_query_parts,
            h, n, tokens, sizes.scale, sizes.score_scale,
            K=sizes.k or 1, CONVOLVED=weight is not None, W=sizes.window,
            **(constants | {"num_warps": max(sizes.warps, padded(d) // 16)} | sizes.tuned("gather_backward")),
        )  # fmt: skip
        # Q̃ is a mean of queries
        grad_query_means = grad_query_parts if parts == 1 else grad_query_parts.sum(dim=2)
        spread_backward_query_kernel[(b * h, fine_parts)](
            *strided(grad_out), *strided(query), means[1], mixed, grad_query_means,
            rows.segment_BN, rows.count_B, grad_query,
            h, n, fine_tokens, sizes.scale, sizes.score_scale,
            **(constants | sizes.tuned("spread_backward_query")),
        )  # fmt: skip
        grad_weight = None
        if weight is not None:
            grad_weight = kernel_gradient(grad_out, value, weight, rows.segment_BN, sizes)
        return grad_query, grad_key, grad_value, grad_weight

    def _sizes(self) -> Sizes:
        return Sizes.of(self.query, self.key_padding_mask, self.conv_weight, self.num_landmarks)

    def _rows(self) -> Rows:
        return Rows.of(self.key_padding_mask, self.num_landmarks)

    def _weight(self) -> Tensor | None:
        return None if self.conv_weight is None else self.conv_weight.contiguous()


def write_means(query: Tensor, key: Tensor, rows: Rows, means: Tensor) -> None:
    """Q̃ and K̃, (2, B, H, M, D); or Q̃ alone, (1, B, H, M, D)."""
    (b, h, n, d), m = query.shape, means.shape[3]
    together = max(1, TOKENS_TOGETHER // triton.next_power_of_2(-(-n // m)))
    means_kernel[(b * h, triton.cdiv(m, together), len(means))](
        *strided(query), *strided(key), means, rows.segment_BN, rows.first_BM, rows.count_B, b, h, n,
        M=m, D=d, D_PAD=padded(d), MASKED=rows.segment_BN is not None,
        J=together, T=TOKENS_TOGETHER // together, num_warps=4,
    )  # fmt: skip


def kernel_gradient(
    grad_out: Tensor, value: Tensor, weight: Tensor, segment_BN: Tensor | None, sizes: Sizes
) -> Tensor:
    """That of the convolution's kernel."""
    k = weight.shape[2]
    tile = sizes.tile if k > NARROW_TILE + 1 else NARROW_TILE
    parts, tokens = sizes.parts(2 * sizes.programs)
    found = grad_out.new_empty(sizes.b, sizes.h, parts, tile, k, dtype=torch.float32)
    constants = sizes.constants | sizes.tuned("kernel_gradient")
    kernel_gradient_kernel[(sizes.b * sizes.h, parts)](
        *strided(grad_out), *strided(value), segment_BN, found, sizes.h, sizes.n, tokens,
        K=k, P=tile, W=tile if k == 1 else 2 * tile, num_warps=4,
        **{name: constants[name] for name in ("D", "D_PAD", "MASKED", "PRECISION", "num_stages")},
    )  # fmt: skip
    return found.sum(dim=(0, 2, 3)).view_as(weight).to(weight.dtype)


# --- arguments ----------------------------------------------------------------------------------------


def precision_of(dtype: torch.dtype) -> tuple[Any, str, str]:
    """The type of products with X and its like, how inputs are multiplied, and how those are.

    X can exceed float16's range, so that such products take float32's, with as many digits.
    """
    if dtype == torch.bfloat16:
        return tl.bfloat16, "tf32", "tf32"  # a precision says nothing of bfloat16
    if dtype == torch.float16:
        return tl.float32, "tf32", "tf32"
    precision = "tf32" if tf32_allowed() else "tf32x3"
    return tl.float32, precision, precision


def rowwise(x_BHND: Tensor) -> Tensor:
    """The same with each head's row contiguous, and a head's entries within 32 bits of its first."""
    n, d = x_BHND.shape[2:]
    if x_BHND.stride(-1) == 1 and (n - 1) * x_BHND.stride(2) + d <= MOST_ENTRIES:
        return x_BHND
    return x_BHND.contiguous()


def strided(x: Tensor) -> tuple[Tensor | int, ...]:
    """A tensor and its steps from row to row, head to head and position to position."""
    return x, x.stride(0), x.stride(1), x.stride(2)


@lru_cache
def chip(device: torch.device) -> tuple[int, bool]:
    """(multiprocessors, whether it is Hopper)."""
    if device.type != "cuda":
        return 1, True  # Triton's interpreter
    found = torch.cuda.get_device_properties(device)
    return found.multi_processor_count, found.major == 9
