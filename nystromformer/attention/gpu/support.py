"""Whether the GPU's kernels can compute a call; nothing here needs Triton or a GPU.

Shapes: B rows, H heads, N positions, D head width, M landmarks.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch
from torch import Tensor

from nystromformer.attention.precision import product_dtype

MOST_LANDMARKS = 256
WIDEST_HEAD = 128
MOST_ENTRIES = 2**31 - 1
"""Of one row of the output, and from a head's first entry to its last: within a head the kernels count in
32 bits, and from head to head and row to row in 64."""
NEEDS = {
    torch.bfloat16: ((64 * 64, 100_352), (128 * 128, 212_992)),
    torch.float16: ((64 * 64, 163_840),),
    torch.float32: ((64 * 64, 217_088),),
}
"""Per dtype, for M × D up to so many entries (each rounded up to a power of two): bytes of shared memory
that the largest kernel takes, as compiled by Triton 3.7; a test compiles them again."""
SHARED_MEMORY = {(8, 0): 166_912, (8, 7): 166_912, (9, 0): 232_448, (10, 0): 232_448, (10, 3): 232_448}
"""Bytes that one program can have, by compute capability: CUDA's programming guide, table of limits."""
LEAST_SHARED_MEMORY = 101_376
"""Of the other GPUs from Ampere on."""

BLOCKS = (16, 32, 64)
"""Neighbours that the kernels take: the sides of blocks that tensor cores multiply."""

HAS_TRITON = find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton then runs its kernels on a CPU, slowly, in NumPy: for tests. It decides this at its import."""


def why_not_on_gpu(query_BHND: Tensor, num_landmarks: int) -> str | None:
    """A clause that says what the kernels cannot do; None where they can."""
    _, h, n, d = query_BHND.shape
    m = num_landmarks
    device = query_BHND.device
    if not HAS_TRITON:
        return "the package triton is not installed"
    if device.type == "cpu":
        if not INTERPRETED:
            return "the tensors are on a CPU, and TRITON_INTERPRET=1 is not set"
    elif device.type != "cuda" or torch.version.cuda is None:
        return f"the tensors are on {device.type}, not on an NVIDIA GPU"
    dtype = product_dtype(query_BHND)
    if dtype not in NEEDS:
        return f"{dtype} is not one of {', '.join(str(known) for known in NEEDS)}"
    if n <= m:
        return f"{n} tokens are at most {m} landmarks, and attention is exact"
    if m > MOST_LANDMARKS or d > WIDEST_HEAD:
        return f"{m} landmarks of width {d} are more than {MOST_LANDMARKS} of width {WIDEST_HEAD}"
    if h * n * d > MOST_ENTRIES:
        return f"{n} tokens of {h} heads of width {d} are more than {MOST_ENTRIES} entries a row"
    needed = shared_memory_needed(dtype, m, d)
    if needed is None:
        return f"{m} landmarks of width {d} in {dtype} exceed every GPU's shared memory"
    if device.type == "cuda" and needed > shared_memory(_capability(device.index)):
        return f"{m} landmarks of width {d} in {dtype} exceed this GPU's shared memory"
    return None


def why_not_neighbours_on_gpu(
    query_BHND: Tensor, num_landmarks: int, neighbours: int, salient_tokens: int = 1
) -> str | None:
    """The same of the kernels of exact neighbours."""
    if salient_tokens != 1:
        return "their only salient token is the row's first"
    if neighbours not in BLOCKS:
        return f"neighbours={neighbours} is not one of {', '.join(map(str, BLOCKS))}"
    if query_BHND.shape[2] <= 2 * neighbours:
        return f"{query_BHND.shape[2]} tokens are at most two blocks of {neighbours}, and attention is exact"
    if padded(num_landmarks) * padded(query_BHND.shape[3]) > 64 * 64:
        return f"{num_landmarks} landmarks of width {query_BHND.shape[3]} are more than 64 of width 64"
    sides = {neighbours, padded(num_landmarks), padded(query_BHND.shape[3])}
    if max(sides) == 64 > min(sides) and _is_hopper(query_BHND.device):
        # A training with heads of 32 ended on an H100 with an illegal access. It looks like a fault that
        # Triton 3.6 and 3.7 have there: products of 64 rows and 32 columns read past the shared memory
        # (triton-lang/triton, issue 11366).
        found = f"blocks of {neighbours}, {num_landmarks} landmarks and heads of {query_BHND.shape[3]}"
        return f"{found} are neither all up to 32 nor all above, as this GPU needs"
    return why_not_on_gpu(query_BHND, num_landmarks)


def shared_memory_needed(dtype: torch.dtype, m: int, d: int) -> int | None:
    """Bytes a program takes at most; None where no GPU has as much."""
    entries = padded(m) * padded(d)
    return next((needed for most, needed in NEEDS[dtype] if entries <= most), None)


def shared_memory(capability: tuple[int, int]) -> int:
    """Bytes a program can have; 0 before Ampere, whose tensor cores are the first for bfloat16 and TF32."""
    if capability < (8, 0):
        return 0
    return SHARED_MEMORY.get(capability, LEAST_SHARED_MEMORY)


def padded(size: int) -> int:
    """The next power of two, at least 16: the sides of blocks that tensor cores multiply."""
    return max(16, 1 << (size - 1).bit_length())


def _is_hopper(device: torch.device) -> bool:
    return device.type == "cuda" and _capability(device.index)[0] == 9


@torch.compiler.assume_constant_result
def _capability(index: int | None) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)
