"""One line for each mistake in a configuration: what was wrong, where, and what to write instead.

Hydra and OmegaConf explain themselves in several lines and in their own terms (`full_key`,
`object_type`, "append with +"); here their exceptions become this project's.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping

import yaml
from hydra.errors import MissingConfigException
from omegaconf.errors import OmegaConfBaseException

from nystromformer.settings.data import SourceSettings
from nystromformer.settings.schema import Setting

Settings = Mapping[str, Setting]
Groups = Mapping[str, Mapping[str, str]]


def as_written(value: object) -> str:
    """A value as a user would write it on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(as_written, value))}]"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        blank = type(value)()  # an entry of a list: what its user wrote is what differs
        pairs = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        given = (f"{name}:{as_written(v)}" for name, v in pairs if v != getattr(blank, name))
        return "{" + ",".join(given) + "}"
    return str(value)


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The most similar of `words`, or None where none is similar."""
    return next(iter(difflib.get_close_matches(word, list(words), n=1)), None)


def unknown_setting(key: str, settings: Settings, groups: Groups) -> str:
    """A key that no dataclass has: the nearest one, or what its section has."""
    section, _, leaf = key.rpartition(".")
    # `steps=5` for training.steps=5: the right name in the wrong place.
    homes = [known for known in settings if known.rpartition(".")[2] == leaf]
    siblings = {known.rpartition(".")[2]: known for known in settings if known.rpartition(".")[0] == section}
    if len(homes) == 1:
        near: str | None = homes[0]
    elif section and siblings:  # compared without the section, which would make every sibling similar
        near = siblings.get(nearest(leaf, siblings) or "")
    else:
        near = nearest(key, [*settings, *groups])
    if near is not None:
        return f"{key} is no setting: did you mean {near}?"
    if section and siblings:
        return f"{key} is no setting: {section} has {', '.join(siblings)}"
    return f"{key} is no setting: --help lists them all"


def unknown_option(group: str, option: object, groups: Groups) -> str:
    """An option that its group does not have."""
    near = nearest(str(option), groups[group])
    hint = f"did you mean {group}={near}? " if near else ""
    return f"{group}={option} is unknown: {hint}{group} has {', '.join(groups[group])}"


def unreadable_override(text: str, groups: Groups) -> str:
    """A word on the command line that is no KEY=VALUE."""
    if "=" not in text:
        homes = [group for group, options in groups.items() if text in options]
        hint = f"did you mean {homes[0]}={text}?" if homes else "write KEY=VALUE, e.g. training.steps=100"
        return f"{text!r} is no setting: {hint}"
    return (
        f"{text} cannot be read: close every bracket, and quote a value with special characters "
        """twice, e.g. "name='a (1)'\""""
    )


def wrong_type(setting: Setting, value: object, written: str | None) -> str:
    """A value that the setting's type cannot hold; `written` is how its user spelt it."""
    if setting.kind is int and isinstance(value, float) and value.is_integer():
        fix = f"{setting.key}={int(value)}"
    elif setting.kind is list and isinstance(value, str):
        fix = f"{setting.key}=[{written or value}]"
    else:
        fix = f"{setting.wanted}, e.g. {setting.key}={as_written(setting.default)}"
    return f"{setting.key}={value if written is None else written} is impossible: write {fix}"


def in_one_line(error: Exception, written: Mapping[str, str], settings: Settings, groups: Groups) -> str:
    """Any exception of Hydra, OmegaConf or the YAML reader, raised while composing.

    `written` maps the keys given on the command line to the text of their values; a mistake in any
    other key stands in a file.
    """
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(cause, yaml.MarkedYAMLError) and cause.problem_mark is not None:
        mark = cause.problem_mark
        return f"{mark.name}, line {mark.line + 1}: this is no YAML: {cause.problem}"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        if group in groups:
            return unknown_option(group, option, groups)
    if "data.sources" in written and ("SourceSettings" in str(cause) or "data.sources" in str(cause)):
        return _wrong_source(cause, written["data.sources"])
    if group_match := re.match(r"(?:In '(.+)': )?Could not override '([^']+)'", str(error)):
        file, group = group_match.groups()
        place = f"configs/{file}.yaml: " if file else ""
        return f"{place}{group} is no group of this command: --help lists them all"

    key = _full_key(cause)
    file_match = re.match(r"In '([^']+)': ", str(error))
    place = f"configs/{file_match[1]}.yaml: " if file_match else ""
    if key and key not in settings and not any(known.startswith(f"{key}.") for known in settings):
        return place + unknown_setting(key, settings, groups)
    reason = _reason(cause)
    if key in settings and not _interpolated(cause):
        if isinstance(cause, OmegaConfBaseException) and key in written:
            return wrong_type(settings[key], cause.value, written[key])
        return f"{place}{key}: {reason}: write {settings[key].wanted}"
    where = f"{key}={written[key]}" if key in written else key
    return f"{place}{where + ': ' if where else ''}{reason}"


def _wrong_source(error: Exception, written: str) -> str:
    """A mistake inside an entry of `data.sources`, which is a section of its own in a list."""
    if unknown := re.search(r"Key '(\w+)' not in 'SourceSettings'", str(error)):
        near = nearest(unknown[1], [field.name for field in dataclasses.fields(SourceSettings)])
        hint = f": did you mean {near}?" if near else ": see docs/data.md"
        return f"data.sources={written}: {unknown[1]} is no setting of a source{hint}"
    reason = _reason(error)
    return f"data.sources={written}: {reason}: write entries such as {{kind:text,files:[a.txt],weight:2}}"


def _full_key(error: BaseException) -> str:
    """The dotted key that OmegaConf blames, in the exception or, from a file, only in its message."""
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return str(error.full_key)
    match = re.search(r"^\s*full_key: (\S+)$", str(error), re.MULTILINE)
    return match[1] if match else ""


def _interpolated(error: BaseException) -> bool:
    return "nterpolation" in f"{type(error).__name__} {error}"


def _reason(error: BaseException) -> str:
    """The sentence in a message of several lines: neither its first `In 'file':` nor the details."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].startswith("In '"):
        lines = lines[1:]
    return lines[0] if lines else type(error).__name__
