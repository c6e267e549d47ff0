"""The folder of one run: what is in it, and whether a configuration may go on with it.

runs/NAME/
    config.yaml        the resolved configuration
    data.json          what data it is trained on, see `run_data`
    metrics.jsonl      one line an event
    checkpoints/       step-N/, and `latest` and `best`, which name one each
    curves.png         losses and accuracies
    approximation.png  the error of each layer's attention, with training.approximation_error_every
    speed.png          tokens a second, gradient norm, waiting for data
    report.json        how the run ended
    report.md          the same for people, with the curves
    profile/           a trace and the costliest operations, with training.profile_steps
    model/             the trained model with its tokenizer, in transformers' layout
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import OmegaConf

from nystromformer.errors import UserError
from nystromformer.files import write_atomically
from nystromformer.settings import PretrainSettings

MAY_CHANGE = frozenset(
    {
        "runs_folder",
        "data.workers",
        "data.folder",
        "data.prepared",
        "data.malformed_rows",
        "data.verify",
        "training.micro_batch_size",
        "training.compile",
        "training.static_shapes",
        "training.loader_workers",
        "training.log_every",
        "training.validate_every",
        "training.checkpoint_every",
        "training.keep_checkpoints",
        "training.keep_best",
        "training.on_full_disk",
        "training.max_skipped_steps",
        "training.parallel",
        "training.approximation_error_every",
        "training.approximation_error_examples",
        "training.profile_steps",
        "training.deterministic",
        "training.max_minutes",
        "model.gradient_checkpointing",
        "tracking.tracker",
        "tracking.project",
    }
)
"""Settings that may differ when a run is resumed: they change where and how fast, not what is computed."""


class RunFolder:
    """Paths of one run. Creating the object touches nothing on disk."""

    def __init__(self, settings: PretrainSettings) -> None:
        self.path = Path(settings.runs_folder).expanduser() / settings.name
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.curves = self.path / "curves.png"
        self.speed = self.path / "speed.png"
        self.approximation = self.path / "approximation.png"
        self.report = self.path / "report.json"
        self.page = self.path / "report.md"
        self.profile = self.path / "profile"
        self.model = self.path / "model"

    def check(self, settings: PretrainSettings) -> None:
        """Look, without touching anything, whether a run with these settings may use the folder.

        Raises:
            UserError: the folder cannot be written, or holds a run of another configuration.
        """
        existing = next(path for path in (self.checkpoints, *self.checkpoints.parents) if path.exists())
        if not existing.is_dir():
            self._cannot_write(f"{existing} is a file")
        if not os.access(existing, os.W_OK):
            self._cannot_write("permission denied")
        if self.config.exists():
            self._check_same_run(settings)

    def create(self, settings: PretrainSettings) -> None:
        """Make the folder with its configuration; on a resumed run both are there.

        Raises:
            UserError: the folder cannot be written.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            if not self.config.exists():
                write_atomically(self.config, OmegaConf.to_yaml(OmegaConf.create(asdict(settings))))
        except OSError as error:
            self._cannot_write(str(error.strerror))

    def _cannot_write(self, why: str) -> NoReturn:
        raise UserError(
            f"cannot write the run folder {self.path} ({why}): write runs_folder=FOLDER with a folder that "
            "you may write to"
        ) from None

    def _check_same_run(self, settings: PretrainSettings) -> None:
        before = dict(_flat(OmegaConf.to_container(OmegaConf.load(self.config))))
        now = dict(_flat(asdict(settings)))
        for key in sorted((before.keys() | now.keys()) - MAY_CHANGE):
            if key not in now or key not in before or before[key] != now[key]:
                raise UserError(
                    f"{self.path} holds a run with {key}={before.get(key)}, and now {key}={now.get(key)}: "
                    f"write {key}={_as_override(before.get(key))} to resume it, or name=OTHER for a new run"
                )


def _flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _as_override(value: Any) -> str:
    return "null" if value is None else str(value)
