"""Tables and figures as every page of results shows them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence


def table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a Markdown table: the first column to the left, figures to the right."""
    ruler = ["---", *("---:" for _ in head[1:])]
    return [f"| {' | '.join(map(str, line))} |" for line in (head, ruler, *rows)]


def percent(values: Sequence[float]) -> str:
    """Shares of several seeds in per cent: the median (mean ± sample standard deviation)."""
    shown = [100 * value for value in values]
    if len(shown) == 1:
        return f"{shown[0]:.1f}"
    return f"{statistics.median(shown):.1f} ({statistics.fmean(shown):.1f} ± {statistics.stdev(shown):.1f})"
