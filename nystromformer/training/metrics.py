"""Where the events of a training go: metrics.jsonl, and a tracker beside it.

metrics.jsonl holds one line an event; curves and reports are drawn from it. Weights & Biases and TensorBoard
are both usable offline.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import netrc
import os
import warnings
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker

from nystromformer.files import write_atomically
from nystromformer.settings.training import TrackingSettings

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


def open_tracker(
    settings: TrackingSettings, folder: Path, name: str, config: dict[str, Any]
) -> GeneralTracker | None:
    """The configured tracker of a run, None where there is none; to be called on the main process.

    TensorBoard's event files lie in `folder/tensorboard`. A run of Weights & Biases lies in `folder/wandb`;
    without an account it stays there, to be sent later by `wandb sync`.
    """
    tracker: GeneralTracker
    if settings.tracker == "tensorboard":
        tracker = TensorBoardTracker("tensorboard", str(folder))
    elif settings.tracker == "wandb":
        import wandb

        tracker = WandBTracker(
            settings.project,
            name=name,
            # The same for the same folder, so that a resumed run continues its curve:
            id=hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16],
            resume="allow",
            dir=str(folder),
            config=config,
            # WANDB_MODE, where it is set, is read by wandb itself.
            mode=None if os.environ.get("WANDB_MODE") else "online" if _has_account() else "offline",
            settings=wandb.Settings(silent=True),
        )
    else:
        return None
    tracker.start()
    return tracker


def numbers_of(event: Event) -> dict[str, float]:
    """An event's numbers as trackers name them, `train/loss`."""
    numbers = {name: value for name, value in event.items() if isinstance(value, (int, float))}
    return {f"{event['kind']}/{name}": value for name, value in numbers.items() if name != "step"}


def _has_account() -> bool:
    """Whether wandb would log in without asking: a key in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
