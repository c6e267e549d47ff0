"""`nystromformer benchmark`: this project's parts beside the peers, on the machine at hand."""

from __future__ import annotations

from nystromformer.benchmark.attention import benchmark_attention
from nystromformer.errors import UserError
from nystromformer.settings.benchmark import BenchmarkSettings

__all__ = ["benchmark", "benchmark_attention"]


def benchmark(settings: BenchmarkSettings) -> None:
    """Measure, print the table and write it as Markdown, JSON and PNG.

    Raises:
        UserError: a setting is impossible on this machine.
    """
    complaints = list(settings.complaints())
    if complaints:
        raise UserError("\n".join(complaints))
    benchmark_attention(settings)
