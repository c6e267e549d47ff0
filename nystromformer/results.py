"""A result as files: JSON, a page in Markdown, pictures.

A benchmark is the files `STEM.json`, `.md` and `.png`. A table or figure is a folder of its own with
`result.json`, `README.md` and its pictures; it is complete or absent: it is written beside its place and
renamed, so that a killed run leaves nothing half.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nystromformer.errors import UserError
from nystromformer.files import replacing_folder, write_atomically
from nystromformer.tables import Block, page_of

Draw = Callable[[dict[str, Any], Path], None]
"""Draws what was measured into a file."""


@dataclass(frozen=True)
class Result:
    """What measures a table or figure hands over to be written."""

    title: str
    measured: dict[str, Any]
    """Every figure with its spread, and what was absent; goes into result.json."""
    blocks: Sequence[Block]
    """The page's body, Markdown: the published figure beside the measured one, and what differs."""
    headline: str
    """One sentence with the main figures, for the index."""
    plots: Mapping[str, Draw] = field(default_factory=dict)
    """Name of a picture, without its ending, and what draws it."""


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


def write_files(stem: Path, content: dict[str, Any], page: str, draw: Draw | None = None) -> None:
    """Write `stem`.json, .md and, with `draw`, .png; raises UserError where one cannot be written."""
    try:
        write_atomically(stem.with_suffix(".json"), json.dumps(content, indent=1) + "\n")
        write_atomically(stem.with_suffix(".md"), page)
        if draw:
            draw(content, stem.with_suffix(".png"))
    except OSError as error:
        raise UserError(f"{error.filename or stem} cannot be written: {error.strerror}") from error


def write_result(folder: Path, result: Result, about: Mapping[str, Any]) -> None:
    """Write the folder of a result, all or nothing, in place of the one before.

    Args:
        folder: FOLDER/NAME_SCALE.
        result: what was measured.
        about: result, scale, told, configuration, inputs, machine, command, seconds, and those of them that
            runs took which were read.

    Raises:
        UserError: something cannot be written.
    """
    content = {**about, "title": result.title, "headline": result.headline, "measured": result.measured}
    try:
        with replacing_folder(folder) as beside:
            text = json.dumps(content, indent=1, ensure_ascii=False)
            (beside / "result.json").write_text(text + "\n", encoding="utf-8")
            (beside / "README.md").write_text(_page(result, about), encoding="utf-8")
            for name, draw in result.plots.items():
                draw(result.measured, beside / f"{name}.png")
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from error


def read_result(folder: Path) -> dict[str, Any] | None:
    """What result.json of the folder holds; None where there is none."""
    try:
        found = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except json.JSONDecodeError as error:
        raise UserError(
            f"{folder / 'result.json'} is no JSON: delete the folder, or write again=true"
        ) from error
    return found if isinstance(found, dict) and "configuration" in found else None


def _page(result: Result, about: Mapping[str, Any]) -> str:
    where = ", ".join(f"{name} {value}" for name, value in about["machine"].items())
    seconds = f", {about['seconds']:.0f} seconds"
    if before := about.get("seconds_before"):
        seconds += f", {before:.0f} of them in runs that were there"
    return page_of(
        [
            f"# {result.title}",
            f"Scale `{about['scale']}`: {about['told']}",
            *result.blocks,
            *(f"![{name}]({name}.png)" for name in result.plots),
            f"`{about['command']}`{seconds}. Measured on: {where}.",
        ]
    )
