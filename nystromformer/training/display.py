"""What a person sees while a training goes on: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nystromformer.data.reading import duration


class ProgressDisplay:
    """A context manager; on other processes than the main one it shows nothing.

    Args:
        label: stands before every line, where several trainings share a terminal; there is no bar then.
        unit: what is counted.
    """

    def __init__(self, steps: int, done: int, *, shown: bool, label: str = "", unit: str = "step") -> None:
        self._steps = steps
        self._shown = shown
        self._label = label
        self._unit = unit
        self._console = Console(file=sys.stdout, soft_wrap=True, highlight=False)
        self._bar: Progress | None = None
        if shown and self._console.is_terminal and not label:
            self._bar = Progress(
                TextColumn(unit),
                MofNCompleteColumn(),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[figures]}"),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task("train", total=steps, completed=done, figures="")

    def __enter__(self) -> ProgressDisplay:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, step: int) -> None:
        if self._bar:
            self._bar.update(self._task, completed=step)

    def train(self, step: int, loss: float, rate: float, tokens_per_second: float, left: float) -> None:
        """Figures of the steps since the last call; `left` in seconds."""
        figures = f"loss {loss:.3f}  {tokens_per_second:,.0f} tokens/s"
        self.reached(step, figures, left, f"  rate {rate:.2e}")

    @property
    def has_bar(self) -> bool:
        """Whether it can be told of every step: there is a bar, and no lines."""
        return self._bar is not None

    def reached(self, step: int, figures: str, left: float, more: str = "") -> None:
        """Show how far it is, with figures; `left` in seconds; `more` is for a log alone."""
        if self._bar:
            self._bar.update(self._task, completed=step, figures=figures)
        else:
            width = len(str(self._steps))
            self.say(f"{self._unit} {step:>{width}}/{self._steps}  {figures}{more}  left {duration(left)}")

    def say(self, text: str) -> None:
        if self._shown:
            for line in text.splitlines():
                self._console.print(f"{self._label}: {line}" if self._label else line, markup=False)
            self._console.file.flush()
