"""What every result has in common: the runs behind it, and the files it is written to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from nystromformer.benchmark.machine import machine
from nystromformer.benchmark.results import results_folder, write_results
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
    return MetricsLog(RunFolder(run).metrics).events("validation")


def write_result(
    settings: ReproduceSettings,
    measured: dict[str, Any],
    lines: Sequence[str],
    plot: Callable[[dict[str, Any], Path], None] | None = None,
) -> None:
    """Write NAME.json, NAME.md and, with `plot`, NAME.png; the page ends with where it was measured."""
    where = machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    # Without its folders, which mean nothing elsewhere.
    told_settings = {name: value for name, value in asdict(settings).items() if "folder" not in name}
    result = {"result": settings.result, "settings": told_settings, "machine": where, **measured}
    picture = [f"![{settings.result}]({settings.result}.png)", ""] if plot else []
    told = ", ".join(f"{name} {value}" for name, value in where.items())
    page = "\n".join([*lines, "", *picture, f"Scale `{settings.scale}`. Measured on: {told}.", ""])
    write_results(results_folder(settings.folder) / settings.result, result, page, plot)
