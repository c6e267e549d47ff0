"""Trackers beside metrics.jsonl: Weights & Biases and TensorBoard, both usable offline."""

from __future__ import annotations

import hashlib
import netrc
import os
from typing import Any, Protocol

from nystromformer.settings import PretrainSettings
from nystromformer.training.metrics import Event
from nystromformer.training.run_folder import RunFolder


class Tracker(Protocol):
    def log(self, event: Event) -> None: ...

    def close(self) -> None: ...


class NoTracker:
    def log(self, event: Event) -> None:
        pass

    def close(self) -> None:
        pass


class TensorBoard:
    """Event files under RUN/tensorboard."""

    def __init__(self, folder: RunFolder) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder.path / "tensorboard"))

    def log(self, event: Event) -> None:
        for name, value in _numbers(event).items():
            self._writer.add_scalar(name, value, event["step"])

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run under RUN/wandb; without an account it stays there, to be sent later by `wandb sync`."""

    def __init__(self, folder: RunFolder, settings: PretrainSettings, config: dict[str, Any]) -> None:
        import wandb

        self._run = wandb.init(
            project=settings.tracking.project,
            name=settings.name,
            id=_stable_id(folder),
            resume="allow",
            dir=str(folder.path),
            config=config,
            # WANDB_MODE, where it is set, is read by wandb itself.
            mode=None if os.environ.get("WANDB_MODE") else "online" if _has_account() else "offline",
            settings=wandb.Settings(silent=True),
        )

    def log(self, event: Event) -> None:
        self._run.log(_numbers(event), step=event["step"])

    def close(self) -> None:
        self._run.finish()


def open_tracker(
    folder: RunFolder, settings: PretrainSettings, config: dict[str, Any], *, on: bool
) -> Tracker:
    """The configured tracker; none on other processes than the main one (`on`)."""
    if not on:
        return NoTracker()
    if settings.tracking.tracker == "wandb":
        return WeightsAndBiases(folder, settings, config)
    if settings.tracking.tracker == "tensorboard":
        return TensorBoard(folder)
    return NoTracker()


def _numbers(event: Event) -> dict[str, float]:
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


def _stable_id(folder: RunFolder) -> str:
    """The same id for the same run folder, so that a resumed run continues its curve."""
    return hashlib.sha256(str(folder.path.resolve()).encode()).hexdigest()[:16]
