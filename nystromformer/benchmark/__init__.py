"""`nystromformer benchmark`: this project's parts beside the peers, on the machine at hand.

A new `what` is a module here whose `benchmark_NAME(settings)` measures, prints its page and writes it with
`results`, one line in BENCHMARKS, and its own settings and complaints in `settings.benchmark`.
"""

from __future__ import annotations

from importlib import import_module

from nystromformer.errors import UserError
from nystromformer.settings.benchmark import BenchmarkSettings

__all__ = ["BENCHMARKS", "benchmark"]

BENCHMARKS = {
    "attention": "nystromformer.benchmark.attention:benchmark_attention",
    "step": "nystromformer.benchmark.step:benchmark_step",
    "inference": "nystromformer.benchmark.inference:benchmark_inference",
    "prepare": "nystromformer.benchmark.prepare:benchmark_prepare",
    "loader": "nystromformer.benchmark.loader:benchmark_loader",
}
"""What measures each `what`, imported when it is asked for: a loader needs no contenders of attention."""


def benchmark(settings: BenchmarkSettings) -> None:
    """Measure, print the table and write it as Markdown, JSON and, where it helps, PNG.

    Raises:
        UserError: a setting is impossible, by itself or on this machine.
    """
    complaints = list(settings.complaints())
    if complaints:
        raise UserError("\n".join(complaints))
    module, _, function = BENCHMARKS[settings.what].partition(":")
    getattr(import_module(module), function)(settings)
