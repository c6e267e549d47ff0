"""Tables and figures as every page of results shows them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

Block = str | Sequence[str]
"""A paragraph or heading of a page; or the lines of a table or list."""


def page_of(blocks: Iterable[Block]) -> str:
    """Blocks as Markdown, an empty line between them; empty blocks are left out."""
    return "\n\n".join(each if isinstance(each, str) else "\n".join(each) for each in blocks if each) + "\n"


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
