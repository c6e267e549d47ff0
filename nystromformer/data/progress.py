"""Progress of a long pass over documents, on stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

_SECONDS_BETWEEN_LINES = 10.0


class _Rates(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(_rates(task.fields["documents"], task.completed, task.elapsed or 0.0))


def _rates(documents: int, bytes_read: float, seconds: float) -> str:
    speed = bytes_read / 1e6 / seconds if seconds > 0 else 0.0
    return f"{documents:,} documents, {bytes_read / 1e6:,.1f} MB, {speed:.1f} MB/s"


class DocumentProgress:
    """A bar on a terminal, a line every ten seconds elsewhere, nothing when not `show`n.

    `total_bytes` is None where the corpus' size is unknown (the hub, compressed files).
    """

    def __init__(self, title: str, *, total_bytes: int | None = None, show: bool = True) -> None:
        self._title = title
        self._show = show
        self._documents = 0
        self._bytes = 0
        self._started = self._last_line = time.monotonic()
        self._bar: Progress | None = None
        if show and sys.stderr.isatty():
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                _Rates(),
                TimeElapsedColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(title, total=total_bytes, documents=0)

    def __enter__(self) -> DocumentProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def advance(self, documents: int, read: int) -> None:
        """Count `documents` more, of `read` bytes."""
        self._documents += documents
        self._bytes += read
        if self._bar is not None:
            self._bar.update(self._task, completed=self._bytes, documents=self._documents)
        elif self._show and time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._print_line()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._show and kind is None:
            self._print_line()

    def _print_line(self) -> None:
        self._last_line = time.monotonic()
        seconds = self._last_line - self._started
        print(f"{self._title}: {_rates(self._documents, self._bytes, seconds)}", file=sys.stderr, flush=True)
