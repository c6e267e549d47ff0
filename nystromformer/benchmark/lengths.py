"""Pages about several contenders at several lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from nystromformer.tables import Block, table

Rows = Mapping[Any, Mapping[str, Mapping[str, Any]]]
"""Length → contender → its figures."""


def mechanism_of(settings: Mapping[str, Any]) -> str:
    """The size of Nyström attention in words."""
    words = f"{settings['landmarks']} landmarks, "
    words += f"kernel {settings['kernel']}" if settings["kernel"] else "no convolution"
    if settings.get("neighbours"):
        words += f", blocks of {settings['neighbours']} for exact neighbours"
        if settings.get("salient_tokens", 1) > 1:
            words += f" and {settings['salient_tokens']} salient tokens"
    return words


def figures_by_length(
    rows: Rows, names: Iterable[str], figures: Iterable[tuple[str, str, Callable[[Any], str]]]
) -> list[Block]:
    """A section for each figure that was measured.

    Args:
        names: the contenders, in order.
        figures: title, key and form of each.
    """
    blocks: list[Block] = []
    for title, key, form in figures:
        found = {name: [row.get(name, {}).get(key) for row in rows.values()] for name in names}
        shown = [
            [name, *("–" if value is None else form(value) for value in values)]
            for name, values in found.items()
            if any(value is not None for value in values)
        ]
        if shown:
            blocks += [f"## {title}", table(["", *rows], shown)]
    return blocks


def ratios_by_length(title: str, rows: Rows, ratios: Sequence[Mapping[str, float]]) -> list[Block]:
    """A section of the ratios at each length."""
    names = dict.fromkeys(name for ratio in ratios for name in ratio)
    cells = [[name, *(f"{ratio[name]:.2f}" if name in ratio else "–" for ratio in ratios)] for name in names]
    return [f"## {title}", table(["", *rows], cells)]
