"""`nystromformer COMMAND --help`: every group and setting, with the value it has now."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter

from nystromformer.settings.compose import config_folder, groups_in, resolve
from nystromformer.settings.mistakes import Groups, as_written
from nystromformer.settings.pretrain import PretrainSettings
from nystromformer.settings.schema import Section, settings_of

COLUMN = 40
"""Where the sentence beside a key begins."""


def help_of(command: str, summary: str, examples: Sequence[str], overrides: Sequence[str]) -> str:
    """The help text; the values shown are those that `overrides` would give."""
    settings, choices = resolve(command, overrides)
    return "\n".join(
        [
            f"nystromformer {command} [KEY=VALUE ...] [--cfg job]",
            "",
            summary,
            "",
            "examples",
            *(f"  {example}" for example in examples),
            "",
            *_group_lines(groups_in(config_folder()), choices),
            "settings: write KEY=VALUE; the values are those of this command line",
            *_setting_lines(settings),
        ]
    )


def _group_lines(groups: Groups, choices: Mapping[str, str | None]) -> Iterator[str]:
    """The command's groups with a heading and an empty line after them; nothing if it has none."""
    if not choices:
        return
    yield "groups: write GROUP=OPTION; * is what this command line takes"
    for group, options in groups.items():
        if group not in choices:
            continue
        for option, sentence in options.items():
            mark = "*" if choices[group] == option else " "
            yield from _entry(f"{mark} {group}={option}", sentence)
    yield ""


def _setting_lines(settings: Section) -> Iterator[str]:
    sources = set()
    if isinstance(settings, PretrainSettings):
        sources = {f"model.{name}" for name in settings.model.from_source}
    for setting in settings_of(type(settings)):
        value = as_written(attrgetter(setting.key)(settings))
        if setting.key in sources:
            value = "(that of init.path)"
        yield from _entry(f"  {setting.key}={value}", setting.documentation)


def _entry(name: str, sentence: str) -> Iterator[str]:
    """`name` and, beside it in its own column, the wrapped sentence."""
    width = max(shutil.get_terminal_size().columns, COLUMN + 30)
    lines = textwrap.wrap(sentence, width - COLUMN)
    if not lines or len(name) >= COLUMN:
        yield name
        name = ""
    for line in lines:
        yield f"{name:<{COLUMN}}{line}"
        name = ""
