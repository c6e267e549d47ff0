"""How every picture looks, and how it is written: whole or absent.

with picture(path, 1, 2, width="page", height=2.2) as (figure, (left, right)):
    left.plot(x, y, **STYLES[0], label="Nyströmformer")
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    {"color": "#D55E00", "marker": "s", "linestyle": "--"},
    {"color": "#009E73", "marker": "^", "linestyle": "-."},
    {"color": "#CC79A7", "marker": "D", "linestyle": ":"},
    {"color": "#000000", "marker": "v", "linestyle": (0, (5, 1))},
    {"color": "#E69F00", "marker": "P", "linestyle": (0, (3, 1, 1, 1))},
    {"color": "#56B4E9", "marker": "X", "linestyle": (0, (1, 1))},
    {"color": "#7F7F7F", "marker": "*", "linestyle": (0, (5, 1, 1, 1, 1, 1))},
)
"""Line styles that differ by colour (the palette of Okabe and Ito), by marker and by dashes."""

_PAPER = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "savefig.dpi": 300,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "grid.linewidth": 0.4,
    "grid.alpha": 0.4,
    "legend.framealpha": 0.9,
    "legend.handlelength": 3,
}
_SCREEN = {
    "savefig.dpi": 120,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.fontsize": 8,
    "lines.markersize": 4,
}
_WIDTHS = {
    "column": (3.25, _PAPER),
    "page": (6.75, _PAPER),
    "half screen": (9, _SCREEN),
    "screen": (12, _SCREEN),
}
"""Inches, and the style: of a two-column paper, and of a report that is read on a screen."""


def style_of(number: int) -> dict[str, Any]:
    """The style of a line by its place; of more than there are STYLES the later ones have hollow markers."""
    hollow = {"markerfacecolor": "white"} if number >= len(STYLES) else {}
    return {**STYLES[number % len(STYLES)], **hollow}


@contextmanager
def picture(
    path: Path,
    rows: int = 1,
    columns: int = 1,
    *,
    width: str | float = "column",
    height: float = 2.2,
    title: str = "",
    legends: bool = False,
    **options: Any,
) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes as `subplots(rows, columns, **options)` gives them; at the end it is a PNG.

    The file is replaced at once, never half, and is the same for the same picture. It needs no display.

    Args:
        width: `column` (3.25 in) or `page` (6.75 in) of a paper at 300 dpi, `half screen` (9 in) or `screen`
            (12 in) at 120 dpi; or the inches of a picture for the screen.
        height: of the whole figure, in inches.
        title: above everything.
        legends: whether all axes get a legend of what has a label in them.

    Raises:
        OSError: it cannot be written; what was there before is left.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # takes a second to import, and without pyplot opens no window

    inches, style = (width, _SCREEN) if isinstance(width, (int, float)) else _WIDTHS[width]
    beside = path.with_name(f".{path.stem}.tmp.png")
    with rc_context(style):
        figure = Figure(figsize=(inches, height), layout="constrained")
        if title:
            figure.suptitle(title)
        yield figure, figure.subplots(rows, columns, **options)
        for axes in figure.axes if legends else ():
            if axes.get_legend_handles_labels()[0]:
                axes.legend()
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # it draws a box instead
                figure.savefig(beside, metadata={"Software": None})
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)


def plot_events(
    axes: Any,
    events: Sequence[Mapping[str, Any]],
    key: str,
    *,
    after: int = 0,
    factor: float = 1,
    **style: Any,
) -> None:
    """A line of one figure by step, of the events that have it; `after` so many steps of another run."""
    known = [event for event in events if event.get(key) is not None]
    axes.plot([after + e["step"] for e in known], [factor * e[key] for e in known], **style)


def legend_below(figure: Any, axes: Any, columns: int) -> None:
    """One legend for the whole figure, below it, of what `axes` shows; in fewer columns than said where so
    many would be wider than the figure."""
    for number in range(columns, 0, -1):
        shown = axes.get_legend_handles_labels()
        legend = figure.legend(*shown, loc="outside lower center", ncols=number)
        if number == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def log_log(axes: Any, lengths: Sequence[int]) -> None:
    """Both axes logarithmic, the horizontal one to base 2 with a tick at each length."""
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(lengths, [str(length) for length in lengths])
