"""What a computation is of: told by its settings, as they are declared, and compared with those of a folder.

Run folders, prepared folders, fine-tuning jobs, cells of the arena and results all ask here which settings
decide them, see `schema.Role`. Settings that an earlier command wrote down, maybe of an earlier version, are
read again: one that did not exist then has its default, which is what was computed then; one that exists no
longer is named, with what to do about it.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import asdict
from operator import attrgetter
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nystromformer.errors import UserError
from nystromformer.settings.mistakes import as_written, nearest
from nystromformer.settings.schema import Role, Section, Setting, settings_of

S = TypeVar("S", bound=Section)

RENAMED: dict[str, str] = {}
"""Former names of settings, dotted, and what they are called now: whoever renames one writes a line here."""

REMOVED: dict[str, tuple[Any, ...] | None] = {
    "model.short_rows": (None, "exact"),
    "model.short_row_segment": None,  # said something of another short_rows only
}
"""Former settings, and the values of theirs that mean what is computed today; None for any value."""

DECIDES = frozenset({Role.RESULT, Role.PATH})
"""What a computation depends on; of a whole grid also GRID."""


def identity(settings: Section, *, of: str | None = None, roles: Container[Role] = DECIDES) -> dict[str, Any]:
    """The settings that decide a computation, dotted.

    Args:
        of: the computation, where some settings are not of it: those that name others are left out.
        roles: without PATH where the content of what is read is known by itself.
    """
    return {
        setting.key: attrgetter(setting.key)(settings)
        for setting in settings_of(type(settings))
        if setting.role in roles and (of is None or not setting.of or of in setting.of)
    }


def paths_of(schema: type[Section]) -> dict[str, str]:
    """Settings that say where something is → the name of the content that says what it is."""
    return {setting.key: setting.content for setting in settings_of(schema) if setting.content}


def difference(
    before: Mapping[str, Any], now: Mapping[str, Any], ignored: Container[str] = ()
) -> tuple[str, str] | None:
    """The settings that differ as a user writes them, then and now; None where all are the same."""
    keys = [key for key in sorted(now) if key not in ignored and before[key] != now[key]]
    if not keys:
        return None
    then, today = (" ".join(f"{key}={as_written(each[key])}" for key in keys) for each in (before, now))
    return then, today


def read_stored(schema: type[S], content: Mapping[str, Any], place: str, otherwise: str) -> S:
    """The settings of `content`, nested or dotted, over today's defaults.

    Args:
        place: the file, as messages name it.
        otherwise: what else its user can do, the end of a message: `write name=OTHER for a new run`.

    Raises:
        UserError: a setting is none any more, or its value is none that it can have today.
    """
    known = {setting.key: setting for setting in settings_of(schema)}
    named = {RENAMED.get(key, key): value for key, value in flattened(content)}
    flat = {key: value for key, value in named.items() if not _says_nothing(key, value)}
    for key, value in flat.items():
        if key not in known:
            raise UserError(_removed(key, value, known, place, otherwise))
    config = OmegaConf.structured(schema)
    for key, value in flat.items():
        try:
            OmegaConf.update(config, key, value)
        except OmegaConfBaseException as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{place} has {key}={as_written(value)}, which this version cannot read ({reason}): mend "
                f"that line, or {otherwise}"
            ) from None
    settings = OmegaConf.to_object(config)
    assert isinstance(settings, schema)
    return settings


def flattened(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested sections under dotted keys; a list is a leaf."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as sections in sections, as JSON: the inverse of `flattened`."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, leaf = key.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[leaf] = value
        if isinstance(value, list):
            place[leaf] = [asdict(entry) if isinstance(entry, Section) else entry for entry in value]
    return tree


def _says_nothing(key: str, value: Any) -> bool:
    """Whether it is a removed setting with a value that means what is computed today."""
    return key in REMOVED and ((values := REMOVED[key]) is None or value in values)


def _removed(key: str, value: Any, known: Mapping[str, Setting], place: str, otherwise: str) -> str:
    near = nearest(key, known)
    hint = f", maybe {near} now" if near else ""
    return (
        f"{place} has {key}={as_written(value)}, which is no setting of this version{hint}: delete its line "
        f"there to go on without it, or {otherwise}"
    )
