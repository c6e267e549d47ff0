"""`minutes=`: the runs behind a result as long as they are wanted, in proportion to what the scale has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

from nystromformer.reproduce.runs import composed_run
from nystromformer.settings import PretrainSettings
from nystromformer.settings.reproduce import LENGTHENED, ReproduceSettings


def lengthened(settings: ReproduceSettings, name: str) -> ReproduceSettings:
    """The settings with the runs behind a result as long as `minutes=` says; the same without it.

    Raises:
        UserError: a word of the runs is wrong.
    """
    section = getattr(settings.scale, name, None)
    if settings.minutes is None or name not in LENGTHENED or section is None:
        return settings
    factor = settings.minutes / section.usual_minutes
    longer = {
        one.name: [*words, *_lengthened(composed_run(settings, with_start(words)), factor)]
        for one in fields(section)
        if isinstance(words := getattr(section, one.name), list) and _has_steps(words)
    }
    scale = replace(settings.scale, **{name: replace(section, **longer)})
    return replace(settings, scale=scale)


def with_start(words: Sequence[str]) -> list[str]:
    """Words of a run that can be composed, where the weights it starts from are filled in later."""
    return [*words, *(["init.path=ANY"] if "init=checkpoint" in words else [])]


def _has_steps(words: Sequence[object]) -> bool:
    """Whether a list of a section says how long a run is: the other lists are of sizes."""
    return any(str(word).startswith("training.steps=") for word in words)


def _lengthened(run: PretrainSettings, factor: float) -> list[str]:
    training = run.training
    return [
        *(
            f"training.{name}={max(round(factor * getattr(training, name)), least)}"
            for name, least in (("steps", 1), ("warmup_steps", 0), ("validate_every", 1))
        ),
        f"name={run.name}_times_{factor:.3g}".replace(".", "_"),
    ]
