"""Where a benchmark's page goes: a folder that is made before anything is measured, then three files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nystromformer.errors import UserError
from nystromformer.settings.benchmark import BenchmarkSettings


def results_folder(name: str) -> Path:
    """Make the folder of the results, before the minutes of measuring.

    Raises:
        UserError: it cannot be made.
    """
    folder = Path(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"folder={name} cannot be made: {error.strerror}") from error
    return folder


def described(settings: BenchmarkSettings) -> dict[str, Any]:
    """The settings for a page of results: of paths the names alone, which mean something elsewhere too."""
    found = dataclasses.asdict(settings)
    del found["folder"]
    return {**found, "files": [Path(file).name for file in settings.files]}


def write_results(
    stem: Path,
    result: dict[str, Any],
    page: str,
    plot: Callable[[dict[str, Any], Path], None] | None = None,
) -> None:
    """Print the page and write `stem`.md, .json and, with `plot`, .png.

    Raises:
        UserError: a file cannot be written.
    """
    print(page)
    try:
        stem.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        stem.with_suffix(".md").write_text(page, encoding="utf-8")
        if plot:
            plot(result, stem.with_suffix(".png"))
    except OSError as error:
        raise UserError(f"{error.filename} cannot be written: {error.strerror}") from error
    print(f"{stem}.md, .json" + (", .png" if plot else ""))
