"""What a person sees while a run goes on: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nystromformer.training.metrics import Event
from nystromformer.training.validation import ValidationResult


class ProgressDisplay:
    """A context manager; on other processes than the main one it shows nothing."""

    def __init__(self, steps: int, done: int, *, shown: bool, unit: str = "step") -> None:
        self._steps = steps
        self._shown = shown
        self._unit = unit
        self.console = Console(file=sys.stdout, soft_wrap=True, highlight=False)
        self._bar: Progress | None = None
        if shown and self.console.is_terminal:
            self._bar = Progress(
                TextColumn(unit),
                MofNCompleteColumn(),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[figures]}"),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self.console,
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
        if not self._shown:
            return
        figures = f"loss {loss:.3f}  {tokens_per_second:,.0f} tokens/s"
        self.reached(step, figures, left, f"  rate {rate:.2e}")

    def reached(self, step: int, figures: str, left: float, more: str = "") -> None:
        """Show how far it is, with figures; `left` in seconds; `more` is for a log alone."""
        if self._bar:
            self._bar.update(self._task, completed=step, figures=figures)
        else:
            width = len(str(self._steps))
            self.say(f"{self._unit} {step:>{width}}/{self._steps}  {figures}{more}  left {clock(left)}")

    def validation(self, step: int, result: ValidationResult) -> None:
        self.say(
            f"validation at step {step}: MLM loss {result.mlm_loss:.3f} "
            f"(unigram {result.unigram_loss:.3f}), accuracy {result.mlm_accuracy:.3f}; "
            f"sentence order loss {result.sop_loss:.3f}, accuracy {result.sop_accuracy:.3f}"
        )

    def approximation(self, event: Event) -> None:
        """The error of the attention; see `approximation`."""
        layers = [value for name, value in event.items() if name.startswith("layer_")]
        if event["mean"] is None:
            self.say(f"attention is exact in all {event['rows']} rows that were looked at")
        else:
            shown = ", ".join(f"{error:.3f}" for error in layers)
            self.say(f"approximation error at step {event['step']}: {event['mean']:.3f} (by layer {shown})")

    def say(self, line: str) -> None:
        if self._shown:
            self.console.print(line, markup=False)
            self.console.file.flush()


def clock(seconds: float) -> str:
    """75 → 1:15; 4000 → 1:06:40."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
