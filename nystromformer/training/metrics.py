"""metrics.jsonl: one line an event, the record that curves and reports are drawn from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nystromformer.training.run_folder import write_atomically

Event = dict[str, Any]
"""`kind` is `train` or `validation`; `step` counts optimizer steps done; the rest are numbers."""


class MetricsLog:
    """Appends events to a file; each line is on disk before the next step."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def rewind(self, step: int) -> None:
        """Forget events after `step`: a resumed run computes them again."""
        events = [event for event in self.events() if event["step"] <= step]
        write_atomically(self._path, "".join(_line(event) for event in events))

    def append(self, event: Event) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(event))

    def events(self, kind: str | None = None) -> list[Event]:
        if not self._path.exists():
            return []
        events = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                events.append(json.loads(line))
            except ValueError:  # a line cut short when the process was killed
                continue
        return [event for event in events if kind is None or event["kind"] == kind]


def _line(event: Event) -> str:
    return json.dumps(event) + "\n"
