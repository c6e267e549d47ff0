"""What the GPU computes in a compiled training step, kernel by kernel, and how fast its products are alone.

    python scripts/gpu/step_kernels.py layers=12 length=512 tokens=65536
    python scripts/gpu/step_kernels.py states=float32       hidden states not in autocast's type, to compare

The steps are those of `benchmark what=step compile=true`, of BERT-base's width, with Nyström and with exact
attention: milliseconds by the clock, the median of steps one by one, and by torch.profiler the mean of two,
by kinds of kernels and of the costliest ones.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from attention_kernels import milliseconds

from nystromformer.benchmark.measure import gpu_kernels
from nystromformer.benchmark.models import EXACT, OURS
from nystromformer.benchmark.step import makers
from nystromformer.model import encoder
from nystromformer.settings.benchmark import BenchmarkSettings
from nystromformer.training.flops import peak_flops

HIDDEN, WORDS, PREDICTED = 768, 30_528, 0.15
STEPS_PROFILED, SHOWN = 2, 30
KINDS = {
    "exact attention": r"flash|fmha|sdpa",
    "products": r"gemm|nvjet|cutlass|xmma|splitK",
    "this project's": r"_kernel$",
    "made by torch.compile": r"^triton_",
}
"""By the first pattern that is found in a kernel's name."""


def kind_of(kernel: str) -> str:
    return next((kind for kind, words in KINDS.items() if re.search(words, kernel)), "others")


def show_products(tokens: int) -> None:
    """Milliseconds and TFLOP/s of a layer's linear layers and the vocabulary's: forward, both gradients."""
    predicted = int(PREDICTED * tokens)
    shapes = {
        "projection": (tokens, HIDDEN, HIDDEN), "up": (tokens, HIDDEN, 4 * HIDDEN),
        "down": (tokens, 4 * HIDDEN, HIDDEN), "vocabulary": (predicted, HIDDEN, WORDS),
    }  # fmt: skip
    for name, (rows, inputs, outputs) in shapes.items():
        made = partial(torch.randn, device="cuda", dtype=torch.bfloat16)
        x, weight, grad = made(rows, inputs), made(outputs, inputs), made(rows, outputs)
        calls = (
            partial(F.linear, x, weight),
            partial(torch.mm, grad, weight),
            partial(torch.mm, grad.t(), x),
        )
        spent = [milliseconds(call) for call in calls]
        gflop = 2 * rows * inputs * outputs / 1e9
        told = ", ".join(f"{ms:.3f} ms ({gflop / ms:.0f} TFLOP/s)" for ms in spent)
        print(f"{name}: forward, of the input, of the weight: {told}", flush=True)


def show_step(name: str, length: int, tokens: int, layers: int) -> None:
    """The lines of one model."""
    torch._dynamo.reset()
    torch.cuda.reset_peak_memory_stats()
    device = torch.device("cuda")
    settings = BenchmarkSettings(
        what="step", lengths=[length], tokens=tokens, layers=layers, hidden=HIDDEN, dtype="bfloat16",
        compile=True, neighbours=None, device="cuda",
    )  # fmt: skip
    contender = makers(settings, length, device)[name]()
    clock = milliseconds(contender.step)
    fastest = peak_flops(device, torch.bfloat16)
    share = f", MFU {contender.flops / clock * 1e3 / fastest:.1%}" if fastest and contender.flops else ""
    peak = torch.cuda.max_memory_allocated() / 1e9
    print(f"{name}: {layers} layers, {clock:.1f} ms a step by the clock{share}, at most {peak:.1f} GB")
    found = gpu_kernels(contender.step, STEPS_PROFILED)
    kinds: Counter[str] = Counter()
    for spent, _, kernel in found:
        kinds[kind_of(kernel)] += 1e3 * spent
    print(
        f"    {sum(kinds.values()):.1f} ms on the GPU:", ", ".join(f"{k} {v:.1f}" for k, v in kinds.items())
    )
    for spent, launches, kernel in found[:SHOWN]:
        print(f"    {1e3 * spent:.3f} ms x{launches:.0f} {kernel[:100]}", flush=True)


def main(words: list[str]) -> int:
    given = {"length": "512", "tokens": "65536", "layers": "12", "states": "autocast"}
    for word in words:
        name, _, value = word.partition("=")
        known = value in ("autocast", "float32") if name == "states" else value.isdecimal()
        if name not in given or not known:
            print(
                f"{word} is unknown: write length=512, tokens=65536, layers=12 or states=float32",
                file=sys.stderr,
            )
            return 2
        given[name] = value
    if not torch.cuda.is_available():
        print("no NVIDIA GPU is here: this measures its kernels", file=sys.stderr)
        return 2
    length, tokens, layers = (int(given[name]) for name in ("length", "tokens", "layers"))
    if given["states"] == "float32":
        encoder.HALVES_STATES = ()
    show_products(tokens)
    for name in (OURS, EXACT):
        show_step(name, length, tokens, layers)
        torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
