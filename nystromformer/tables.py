"""Tables as every page of results shows them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a Markdown table: the first column to the left, figures to the right."""
    ruler = ["---", *("---:" for _ in head[1:])]
    return [f"| {' | '.join(map(str, line))} |" for line in (head, ruler, *rows)]
