"""The folder of one run: what is in it, and whether a configuration may go on with it.

runs/NAME/
    run.lock           held by the process that trains; run.lock.holder says who and since when
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

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import yaml
from omegaconf import OmegaConf

from nystromformer.errors import UserError
from nystromformer.files import held, why_not_writable, write_atomically
from nystromformer.settings import PretrainSettings
from nystromformer.settings.identity import difference, identity, read_stored

_OTHER = "write name=OTHER for a new run"


class RunFolder:
    """Paths of one run. Creating the object touches nothing on disk."""

    def __init__(self, settings: PretrainSettings) -> None:
        self.path = Path(settings.runs_folder).expanduser() / settings.name
        self.lock = self.path / "run.lock"
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
        if why := why_not_writable(self.checkpoints):
            self._cannot_write(why)
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

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the folder for this process; what was made for the lock alone goes again.

        Raises:
            Held: another process trains in it, in one line that names it.
            UserError: the folder cannot be written.
        """
        with ExitStack() as stack:
            stack.callback(self._forget_if_empty)
            try:
                stack.enter_context(held(self.lock, str(self.path), "write name=OTHER for another run"))
            except OSError as error:
                self._cannot_write(str(error.strerror))
            try:
                yield
            finally:
                if not self.config.exists():  # no run came of it
                    self.lock.unlink(missing_ok=True)

    def _forget_if_empty(self) -> None:
        with suppress(OSError):
            self.path.rmdir()

    def stored(self) -> PretrainSettings | None:
        """The settings of the run in the folder, what is new since at its default; None where there is none.

        Raises:
            UserError: they cannot be read, or this version has not all of them.
        """
        return stored_settings(self.config, _OTHER)

    def _cannot_write(self, why: str) -> NoReturn:
        raise UserError(
            f"cannot write the run folder {self.path} ({why}): write runs_folder=FOLDER with a folder that "
            "you may write to"
        ) from None

    def _check_same_run(self, settings: PretrainSettings) -> None:
        stored = self.stored()
        if stored is None:
            return
        open_ones = {f"model.{name}" for name in settings.model.from_source}  # will be the run's own
        if differing := difference(identity(stored), identity(settings), ignored=open_ones):
            then, now = differing
            raise UserError(
                f"{self.path} holds a run with {then}, and now {now}: write {then} to resume it, or "
                "name=OTHER for a new run"
            )


def stored_settings(path: Path, otherwise: str) -> PretrainSettings | None:
    """The settings in a run's config.yaml, see `RunFolder.stored`; `otherwise` ends a message."""
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read ({str(error).splitlines()[0]}): {otherwise}") from None
    if not content or not isinstance(content, dict):
        raise UserError(f"{path} holds no settings: {otherwise}")
    return read_stored(PretrainSettings, content, str(path), otherwise)
