"""Settings that were written down by an earlier command, maybe of an earlier version, read again.

A setting that did not exist then has its default, which is what was computed then. One that exists no longer
is named, with what to do about it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nystromformer.errors import UserError
from nystromformer.settings.mistakes import as_written, nearest
from nystromformer.settings.schema import Setting, settings_of

S = TypeVar("S")

RENAMED: dict[str, str] = {}
"""Former names of settings, dotted, and what they are called now: whoever renames one writes a line here."""

REMOVED: dict[str, tuple[Any, ...]] = {
    "model.short_rows": (None, "exact"),
    "model.short_row_segment": (),  # said nothing beside short_rows=exact
}
"""Former settings, and the values that mean what is computed today; none for any value."""


def known_today(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Stored settings under today's names, without the removed ones that say what is computed today."""
    named = {RENAMED.get(key, key): value for key, value in flat.items()}
    return {
        key: value
        for key, value in named.items()
        if key not in REMOVED or (REMOVED[key] and value not in REMOVED[key])
    }


def read_stored(schema: type[S], content: Mapping[str, Any], place: str, otherwise: str) -> S:
    """The settings of `content`, over today's defaults.

    Args:
        place: the file, as messages name it.
        otherwise: what else its user can do, the end of a message: `write name=OTHER for a new run`.

    Raises:
        UserError: a setting is none any more, or its value is none that it can have today.
    """
    known = {setting.key: setting for setting in settings_of(schema)}
    flat = known_today(dict(flattened(content)))
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


def flat_settings(settings: Any) -> dict[str, Any]:
    """Every setting of a dataclass under its dotted key."""
    return {setting.key: attrgetter(setting.key)(settings) for setting in settings_of(type(settings))}


def _removed(key: str, value: Any, known: Mapping[str, Setting], place: str, otherwise: str) -> str:
    near = nearest(key, known)
    hint = f", maybe {near} now" if near else ""
    return (
        f"{place} has {key}={as_written(value)}, which is no setting of this version{hint}: delete its line "
        f"there to go on without it, or {otherwise}"
    )
