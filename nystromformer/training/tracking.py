"""Trackers beside metrics.jsonl: Weights & Biases and TensorBoard, both usable offline."""

from __future__ import annotations

import hashlib
import netrc
import os
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker

from nystromformer.settings.training import TrackingSettings
from nystromformer.training.metrics import Event


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
