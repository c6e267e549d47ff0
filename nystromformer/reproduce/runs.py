"""The pretraining runs behind a result: each is trained once, resumed where it stopped, and read again."""

from __future__ import annotations

from collections.abc import Sequence

from nystromformer.settings import PretrainSettings
from nystromformer.settings.compose import compose
from nystromformer.settings.reproduce import ReproduceSettings
from nystromformer.training.metrics import Event, MetricsLog
from nystromformer.training.pretrain import pretrain
from nystromformer.training.run_folder import RunFolder


def finished_run(settings: ReproduceSettings, words: Sequence[str]) -> PretrainSettings:
    """Train what `nystromformer pretrain WORDS` trains, or go on with it; a finished run is left alone."""
    run = compose(
        "pretrain",
        [
            *words,
            f"runs_folder={settings.runs_folder}",
            f"data.folder={settings.prepared_folder}",
            *settings.overrides,
        ],
    )
    assert isinstance(run, PretrainSettings)
    folder = RunFolder(run)
    folder.check(run)
    if not folder.report.exists():
        pretrain(run)
    return run


def validations(run: PretrainSettings) -> list[Event]:
    """The run's validation events, in order of their steps."""
    return MetricsLog(RunFolder(run).metrics).events("validation")
