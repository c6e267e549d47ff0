"""A run that goes on from another run's checkpoint as from its own: one stable run, several decays.

The other run's past becomes this one's: weights, moments, random state, place in the data, metrics. So what
this run's settings say of it must be what happened there; what follows is free.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, fields, replace
from pathlib import Path

from nystromformer.data.storage import PreparedData
from nystromformer.errors import UserError
from nystromformer.settings import PretrainSettings
from nystromformer.settings.identity import difference, identity
from nystromformer.settings.training import PhaseSettings
from nystromformer.training.batches import RunBatches
from nystromformer.training.checkpoint import damage_of, latest_step, saved_steps
from nystromformer.training.phases import Plan
from nystromformer.training.run_folder import RunFolder, stored_settings

_PLANNED = {
    "branch", "training.phases", "data.masking_probability",
    *(f"training.{part.name}" for part in fields(PhaseSettings)),
}  # fmt: skip
"""Settings that may differ, as far as the plan up to the checkpoint does not."""
_WANTED = "write branch=runs/NAME/checkpoints/step-N"


@dataclass(frozen=True)
class Branch:
    """Where a run leaves another one."""

    checkpoint: Path
    parent: PretrainSettings
    """Of the run that the checkpoint is of, with the folder where it is now."""

    @property
    def step(self) -> int:
        return int(self.checkpoint.name.removeprefix("step-"))

    @property
    def folder(self) -> RunFolder:
        """The other run's."""
        return RunFolder(self.parent)

    def begin(self, settings: PretrainSettings, prepared: PreparedData, plan: Plan) -> Path:
        """Take over the other run's metrics, before the first own step.

        Returns:
            The checkpoint to go on from.

        Raises:
            UserError: it is damaged, leaves no step to do, or its run did other steps up to there.
        """
        told = f"branch={settings.branch}"
        if damage := damage_of(self.checkpoint):
            raise UserError(f"{told}: {damage}: write another one")
        if self.step >= plan.steps:
            raise UserError(f"{told} leaves none of the {plan.steps} steps to do: plan more of them")
        quiet = replace(self.parent, training=replace(self.parent.training, loader_workers=0))
        then = RunBatches(quiet, prepared, rank=0, world_size=1).plan
        if why := _first_difference(then, plan, self.step):
            raise UserError(f"{told}: {why}: plan the steps up to {self.step} as they were")
        if self.folder.metrics.is_file():
            shutil.copyfile(self.folder.metrics, RunFolder(settings).metrics)  # cut to the step by `Run`
        return self.checkpoint


def branch_of(settings: PretrainSettings) -> Branch | None:
    """Where a run begins that names a checkpoint of another one; None once it has one of its own.

    Raises:
        UserError: there is no such checkpoint, or it is of a run of other settings.
    """
    if settings.branch is None or latest_step(RunFolder(settings).checkpoints) is not None:
        return None
    checkpoint = Path(settings.branch).expanduser().resolve()
    if not (checkpoint / "state.json").is_file():
        there = ", ".join(f"step-{step}" for step in saved_steps(checkpoint.parent))
        known = f"{checkpoint.parent} has {there}" if there else _WANTED
        raise UserError(f"branch={settings.branch} is no checkpoint of a run: {known}")
    run = checkpoint.parent.parent
    parent = stored_settings(run / "config.yaml", _WANTED)
    if parent is None:
        raise UserError(f"branch={settings.branch} lies in no run's folder: {_WANTED}")
    if differing := difference(identity(parent), identity(settings), ignored=_PLANNED):
        then, now = differing
        raise UserError(
            f"branch={settings.branch} is of a run with {then}, and now {now}: write {then}, or no branch"
        )
    return Branch(checkpoint, replace(parent, runs_folder=str(run.parent), name=run.name))


def _first_difference(then: Plan, now: Plan, steps: int) -> str | None:
    """What the first so many steps differ in, in words."""
    for step in range(steps):
        ways = [(each.batch_size, each.drawing) for each in (then.stretch(step), now.stretch(step))]
        if ways[0] != ways[1]:
            was, would_be = (f"{size} rows, {way}" for size, way in ways)
            return f"step {step + 1} was of {was}, and would be of {would_be}"
        if then.rate(step) != now.rate(step):
            return f"the rate of step {step + 1} was {then.rate(step):g}, and would be {now.rate(step):g}"
    return None
