"""What each kernel of Nyström attention on a GPU moves and multiplies: counted on paper, measured nowhere.

    python -m nystromformer.benchmark.kernels        the tables of docs/attention.md

Bytes are those of the GPU's memory: what a kernel reads and what it writes, each once. Read again by a
neighbour (a convolution's window, a head's landmarks), and the iterates of the inverse's backward pass, they
are taken to lie in the cache. Operations are those of the products that a kernel does, with what it computes
again and the zeros of the convolution's band; a multiplication with its addition counts as 2.

Shapes: B rows, H heads, N positions, D head width, M landmarks, K kernel width; S parts of the positions;
C blocks of W positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from nystromformer import tables

HALF, SINGLE = 2, 4
"""Bytes of an entry: of the inputs, and of what is as small as the landmarks."""
MEMORY, PRODUCTS = 3.35e12, 800e12
"""Bytes and bf16 operations a second of an H100 with HBM3; 800e12 is what large products reach there."""
MULTIPROCESSORS = 132
TOKENS, HEADS, WIDTH, LANDMARKS, KERNEL, BLOCK = 65_536, 12, 64, 64, 33, 64
ITERATIONS = 6
LENGTHS = (512, 8192)


class Work(NamedTuple):
    """Of one launch."""

    kernel: str
    bytes: int
    flops: int

    @property
    def seconds(self) -> float:
        """What the slower of memory and products takes, were it busy all the time."""
        return max(self.bytes / MEMORY, self.flops / PRODUCTS)


def kernel_work(
    b: int, n: int, *, h: int = HEADS, d: int = WIDTH, m: int = LANDMARKS, k: int | None = KERNEL
) -> list[Work]:
    """Every launch of a forward and a backward pass; bf16, no padding, a head's matrices on chip.

    Args:
        k: 3 or more, or None without a convolution.
    """
    from nystromformer.attention.gpu.plan import Sizes  # needs Triton

    sizes = Sizes(b, h, n, m, d, k, torch.bfloat16, False, MULTIPROCESSORS, True)
    (parts, _), (fine_parts, _) = sizes.parts, sizes.fine_parts
    heads = b * h
    inputs = HALF * heads * n * d  # one of Q, K, V
    means = SINGLE * heads * m * d  # one of Q̃, K̃, B̃ V, X
    matrices = SINGLE * heads * m * m
    sums = SINGLE * heads * m  # a number a landmark
    joined = 2 * means + 2 * sums  # of each part
    product = 2 * heads * n * m * d  # of all tokens with all landmarks
    narrow = sizes.narrow_tile
    band = heads * fine_parts * narrow * (k or 0)
    convolution = 2 * heads * n * sizes.window * d if k else 0
    step, small = 2 * heads * m**3, 2 * heads * m * m * d
    found = [
        Work("means", inputs + means, heads * n * d),
        Work("gather", 2 * inputs + means + parts * joined, 3 * product),
        Work(
            "mix",
            parts * joined + means + 3 * means + sums + matrices,
            2 * small + 4 * ITERATIONS * step,
        ),
        Work("spread", 3 * inputs + 2 * means, 2 * product + convolution),
        Work("spread_backward_means", 2 * inputs + 2 * means + 2 * parts * means, 4 * product),
        Work(
            "mix_backward",
            2 * parts * means + 3 * means + matrices + 4 * means + sums,
            5 * small + (4 + 8) * ITERATIONS * step,
        ),
        Work(
            "gather_backward",
            3 * inputs + 3 * means + 2 * sums + 2 * inputs + parts * means,
            5 * product + convolution,
        ),
    ]
    if parts > 1:
        found += [Work("sum over parts", parts * means + means, heads * parts * m * d)]
    found += [Work("spread_backward_query", 2 * inputs + 3 * means + inputs, 3 * product)]
    if k:
        found += [
            Work("kernel_gradient", 2 * inputs + SINGLE * band, 2 * heads * n * 2 * narrow * d),
            Work("sum over rows, parts and places", SINGLE * band, band),
        ]
    return found


def neighbour_work(
    b: int, n: int, *, h: int = HEADS, d: int = WIDTH, m: int = LANDMARKS, k: int = KERNEL, w: int = BLOCK
) -> list[Work]:
    """The same with exact neighbours, where what blocks share is computed again for the backward pass.

    `sums of gradients` and `sum with the convolution` are PyTorch's, each tensor read and written once; the
    few operations on numbers a landmark between the launches are left out.
    """
    from nystromformer.attention.gpu.plan import Sizes  # needs Triton

    plain = {work.kernel: work for work in kernel_work(b, n, h=h, d=d, m=m, k=k)}
    sizes = Sizes(b, h, n, m, d, k, torch.bfloat16, False, MULTIPROCESSORS, True)
    heads, c = b * h, -(-n // w)
    inputs, numbers = HALF * heads * n * d, SINGLE * heads * n  # a number a token
    means, matrices, sums = (SINGLE * heads * m * each for each in (d, m, 1))
    shared, of_blocks = c * means, c * sums  # T, P and their gradients; a number a landmark of each block
    firsts, counts = SINGLE * heads * c * d, SINGLE * b * c * m
    product, near = 2 * heads * n * m * d, 3 * 2 * heads * n * w * d  # of tokens with landmarks, neighbours
    step, small = 2 * heads * m**3, 2 * heads * m * m * d
    convolution = 2 * heads * n * sizes.window * d
    parts = -(-c // -(-c // min(c, -(-sizes.programs // heads))))
    far = shared + 2 * of_blocks + means + 3 * sums + matrices + counts
    blocks = [
        Work("blocks", 2 * inputs + means + shared + 3 * of_blocks, 2 * product),
        Work("whole", shared + 3 * of_blocks + means + 4 * sums, 2 * heads * c * m * d),
        Work("mixed", far + shared + of_blocks, c * small),
    ]
    of_block = shared + of_blocks + counts  # P, its sums and the counts of far tokens
    summed = means + matrices + 2 * sums
    return [
        Work("means", 2 * inputs + 2 * means, 2 * heads * n * d),
        Work("inverse", 2 * means + matrices, small + 4 * ITERATIONS * step),
        *blocks,
        Work("near", 4 * inputs + means + of_block + 2 * numbers, 2 * product + 2 * near),
        Work("convolution", 2 * inputs, convolution),
        Work("sum with the convolution", 3 * inputs, heads * n * d),
        Work("convolution, turned", 2 * inputs, convolution),
        plain["kernel_gradient"],
        plain["sum over rows, parts and places"],
        *(work._replace(kernel=f"{work.kernel}, again") for work in blocks),
        Work(
            "near_backward_query",
            6 * inputs + means + of_block + 2 * shared + of_blocks + 2 * firsts + 4 * numbers,
            5 * product + 3 * near,
        ),
        Work("mixed_backward", far + 2 * (shared + of_blocks) + parts * summed, 2 * c * small),
        Work("sums over parts", (parts + 1) * summed, parts * heads * m * (d + m)),
        Work(
            "near_backward_key",
            6 * inputs + 2 * means + 2 * sums + shared + of_blocks + shared + 3 * numbers,
            5 * product + 4 * near,
        ),
        Work("sums over blocks", 2 * (shared + means) + 2 * firsts, 2 * heads * c * (m + 1) * d),
        Work("inverse_backward", matrices + 4 * means, 3 * small + (4 + 8) * ITERATIONS * step),
        Work("means_backward", 2 * means + 2 * inputs, 2 * heads * n * d),
        Work("sums of gradients", 9 * inputs, 3 * heads * n * d),
    ]


def floor_bytes(b: int, n: int, h: int = HEADS, d: int = WIDTH) -> int:
    """Inputs read and outputs written once in each direction: eleven tensors."""
    return 11 * HALF * b * h * n * d


def table(work_of: Callable[[int, int], list[Work]] = kernel_work) -> list[str]:
    """The work of 65,536 tokens at both lengths; – where a launch is of the other one alone."""
    found = [work_of(TOKENS // n, n) for n in LENGTHS]
    by_name = [
        {work.kernel: _cells(work.bytes, work.flops, work.seconds) for work in works} for works in found
    ]
    names = max(by_name, key=len)
    rows = [
        [f"`{name}`", *(cell for of_length in by_name for cell in of_length.get(name, ["–"] * 3))]
        for name in names
    ]
    totals = [
        cell
        for works in found
        for cell in _cells(
            sum(w.bytes for w in works), sum(w.flops for w in works), sum(w.seconds for w in works)
        )
    ]
    head = ["launch", *(f"{what} at {n:,}" for n in LENGTHS for what in ("MB", "GFLOP", "µs"))]
    launches = " and ".join(str(number) for number in dict.fromkeys(map(len, found)))
    return tables.table(head, [*rows, [f"{launches} launches", *totals]])


def _cells(moved: int, flops: int, seconds: float) -> list[str]:
    return [f"{moved / 1e6:,.0f}", f"{flops / 1e9:,.1f}", f"{1e6 * seconds:,.0f}"]


if __name__ == "__main__":
    print(*table(), "", *table(neighbour_work), sep="\n")
