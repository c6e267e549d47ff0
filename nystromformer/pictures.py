"""How every picture of a result looks: made for a column or a page of a paper, read without colour.

with figure(1, 2, width="page", height=2.2) as (fig, (left, right)):
    left.plot(x, y, **STYLES[0], label="Nyströmformer")
    save(fig, path)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WIDTHS = {"column": 3.25, "page": 6.75}
"""Inches of a two-column paper."""
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
    "figure.dpi": 100,
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


@contextmanager
def figure(
    rows: int = 1, columns: int = 1, *, width: str = "column", height: float = 2.2, **options: Any
) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes as `subplots(rows, columns, **options)` gives them, in the style of all.

    Args:
        width: `column` (3.25 in) or `page` (6.75 in).
        height: of the whole figure, in inches.
    """
    import matplotlib
    from matplotlib.figure import Figure  # draws into files, opens no window

    with matplotlib.rc_context(_PAPER):
        drawn = Figure(figsize=(WIDTHS[width], height), layout="constrained")
        yield drawn, drawn.subplots(rows, columns, **options)


def save(fig: Any, path: Path) -> None:
    """Write the picture as PNG at 300 dpi."""
    fig.savefig(path, metadata={"Software": None})
