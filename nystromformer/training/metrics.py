"""metrics.jsonl: one line an event, the record that curves and reports are drawn from."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from pathlib import Path
from typing import Any

from nystromformer.files import write_atomically

Event = dict[str, Any]
"""`kind` is `train`, `validation`, `approximation` or `skipped`; `step` counts optimizer steps done."""


class MetricsLog:
    """Appends events to a file; lines that a full disk does not take wait until it does."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting: list[Event] = []

    def rewind(self, step: int) -> None:
        """Forget events after `step`: a resumed run computes them again."""
        events = [event for event in self.events() if event["step"] <= step]
        write_atomically(self._path, "".join(_line(event) for event in events))

    def append(self, event: Event) -> None:
        self._waiting.append(event)
        size = self._path.stat().st_size if self._path.exists() else 0
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write("".join(_line(event) for event in self._waiting))
        except OSError as error:
            if len(self._waiting) == 1:
                warnings.warn(f"{self._path} takes no more lines ({error.strerror}); they wait", stacklevel=2)
            with contextlib.suppress(OSError):
                os.truncate(self._path, size)  # no half line
            return
        self._waiting.clear()

    def events(self, kind: str | None = None) -> list[Event]:
        events = []
        text = self._path.read_text(encoding="utf-8") if self._path.exists() else ""
        for line in text.splitlines():
            try:
                events.append(json.loads(line))
            except ValueError:  # a line cut short when the process was killed
                continue
        events += self._waiting
        return [event for event in events if kind is None or event["kind"] == kind]


def _line(event: Event) -> str:
    return json.dumps(event) + "\n"
