"""Progress of a long pass over documents, on stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.text import Text

_SECONDS_BETWEEN_LINES = 10.0


class _Figures(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(task.fields["figures"]())


class DocumentProgress:
    """A bar on a terminal, a line every ten seconds elsewhere, nothing when not `show`n.

    It shows documents, MB, MB/s, tokens/s and the time left. `total_bytes` is None where the corpus' size
    is unknown (the hub, compressed files); then there is no time left to tell.
    """

    def __init__(self, title: str, *, total_bytes: int | None = None, show: bool = True) -> None:
        self._title = title
        self._show = show
        self._total = total_bytes
        self._documents = self._bytes = self._tokens = self._passed = 0
        self._started = self._last_line = time.monotonic()
        self._bar: Progress | None = None
        if show and sys.stderr.isatty():
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                _Figures(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(title, total=total_bytes, figures=self._figures)

    def __enter__(self) -> DocumentProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def advance(self, documents: int, read: int, tokens: int = 0) -> None:
        """Count `documents` more, of `read` bytes, that became `tokens` tokens."""
        self._documents += documents
        self._bytes += read
        self._tokens += tokens
        self._show_now()

    def passed(self, read: int) -> None:
        """Count `read` bytes that were done before or are another machine's."""
        if not self._bytes:
            self._started = time.monotonic()  # passing is much faster than the work: no rate follows from it
        self._passed += read
        self._show_now()

    def _show_now(self) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=self._bytes + self._passed)
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

    def _figures(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-9)
        parts = [f"{self._documents:,} documents", f"{self._bytes / 1e6:,.1f} MB"]
        parts.append(f"{self._bytes / 1e6 / seconds:.1f} MB/s")
        if self._tokens:
            parts.append(f"{self._tokens / seconds:,.0f} tokens/s")
        left = (self._total or 0) - self._bytes - self._passed
        if left > 0 and self._bytes:
            parts.append(f"{duration(left / self._bytes * seconds)} left")
        if self._passed:
            parts.append(f"{self._passed / 1e6:,.1f} MB passed over")
        return ", ".join(parts)

    def _print_line(self) -> None:
        self._last_line = time.monotonic()
        print(f"{self._title}: {self._figures()}", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: 1:02:03, or 2:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
