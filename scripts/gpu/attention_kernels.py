"""Milliseconds of each kernel of Nyström attention on a GPU, beside PyTorch's fused exact attention.

    python scripts/gpu/attention_kernels.py lengths=512,4096,8192 tokens=65536

12 heads of 64, 64 landmarks, a convolution of 33, bfloat16, no padding; without and with exact neighbours in
blocks of 64. For each length what a call takes by events, launches from Python included, the median of 20;
then what the GPU was busy with in a forward and backward pass, by torch.profiler, the mean of 5. The floor is
that of `benchmark what=attention`.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from nystromformer import nystrom_attention
from nystromformer.benchmark.attention import TENSORS_MOVED, copy_rate
from nystromformer.benchmark.measure import gpu_kernels

HEADS, WIDTH, LANDMARKS, KERNEL, NEIGHBOURS = 12, 64, 64, 33, 64
CALLS_TIMED, CALLS_PROFILED = 20, 5
SHOWN = 18


def milliseconds(call: Callable[[], object]) -> float:
    """The median of calls one after the other, after three to warm up."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    found = []
    for _ in range(CALLS_TIMED):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        stop.record()
        stop.synchronize()
        found.append(start.elapsed_time(stop))
    return statistics.median(found)


def train(attend: Callable[[], Tensor], leaves: list[Tensor], seed: Tensor) -> None:
    torch.autograd.grad(attend(), leaves, seed)


def measure(length: int, tokens: int) -> None:
    """Print the lines of one length."""
    rows = max(1, tokens // length)
    query, key, value = (
        torch.randn(rows, length, HEADS, WIDTH, device="cuda", dtype=torch.bfloat16)
        .transpose(1, 2)
        .requires_grad_()
        for _ in range(3)
    )
    weight = torch.randn(HEADS, 1, KERNEL, 1, device="cuda", requires_grad=True)
    seed = torch.randn_like(query)
    ways: dict[str, tuple[Callable[[], Tensor], list[Tensor]]] = {
        "exact, fused": (
            partial(F.scaled_dot_product_attention, query, key, value),
            [query, key, value],
        ),
        "nystromformer": (
            partial(
                nystrom_attention, query, key, value, num_landmarks=LANDMARKS, conv_weight=weight,
                implementation="operator",
            ),
            [query, key, value, weight],
        ),
    }  # fmt: skip
    if length > 2 * NEIGHBOURS:
        near = partial(ways["nystromformer"][0], neighbours=NEIGHBOURS)
        ways["nystromformer, exact neighbours"] = near, [query, key, value, weight]
    for name, (attend, leaves) in ways.items():
        with torch.no_grad():
            forward = milliseconds(attend)
        both = milliseconds(partial(train, attend, leaves, seed))
        print(f"n={length} {name}: forward {forward:.3f} ms, forward and backward {both:.3f} ms", flush=True)
    for name, (attend, leaves) in ways.items():
        if not name.startswith("nystromformer"):
            continue
        found = gpu_kernels(partial(train, attend, leaves, seed), CALLS_PROFILED)
        print(f"    {name}: {1e3 * sum(row[0] for row in found):.3f} ms on the GPU, of which")
        for spent, launches, kernel in found[:SHOWN]:
            print(f"    {1e3 * spent:.3f} ms x{launches:.0f} {kernel[:60]}", flush=True)


def main(words: list[str]) -> int:
    given = {"lengths": "512,4096,8192", "tokens": "65536"}
    for word in words:
        name, _, value = word.partition("=")
        if name not in given or not value.replace(",", "").isdecimal():
            print(f"{word} is unknown: write lengths=512,4096 or tokens=65536", file=sys.stderr)
            return 2
        given[name] = value
    if not torch.cuda.is_available():
        print("no NVIDIA GPU is here: this measures its kernels", file=sys.stderr)
        return 2
    tokens = int(given["tokens"])
    rate = copy_rate(torch.device("cuda"))
    floor = TENSORS_MOVED * tokens * HEADS * WIDTH * torch.bfloat16.itemsize / rate * 1e3
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}: copies {rate / 1e9:.0f} GB/s")
    print(f"floor of a forward and backward pass: {floor:.3f} ms")
    for length in map(int, given["lengths"].split(",")):
        measure(length, tokens)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
