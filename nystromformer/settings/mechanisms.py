"""The attention mechanisms: a line for each, and the settings that each declares in its own file.

A mechanism is one file with a dataclass `Settings`, whose fields become `model.…` of every command and keys
of `config.json`, and a subclass of `attention.mechanism.Mechanism`, which MECHANISMS names. The file imports
torch, which the command line's help and checks must not wait for: so of the file only `Settings` is run here.
It may use literals, builtins, `dataclass` and `setting`.
"""

from __future__ import annotations
import __future__

import ast
import functools
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

MECHANISMS = {
    "nystrom": "nystromformer.attention.nystrom:NystromAttention",
    "softmax": "nystromformer.attention.softmax:SoftmaxAttention",
    "linformer": "nystromformer.attention.linformer:LinformerAttention",
    "longformer": "nystromformer.attention.longformer:LongformerAttention",
    "performer": "nystromformer.attention.performer:PerformerAttention",
}
"""What `model.attention` can be, and the module and class that compute it; a new one is its file and a line
here."""


def setting(
    default: Any,
    *,
    least: int | None = None,
    choices: tuple[str, ...] | None = None,
    odd: bool = False,
    none: Any = MISSING,
    hint: str = "",
) -> Any:
    """A field of `Settings` with what its value may be.

    Args:
        least: the smallest number.
        choices: the texts there are.
        odd: for a number of positions with one in the middle.
        none: what a configuration may hold for None.
        hint: how the line on a number that is too small ends, in a configuration.
    """
    bounds = {"least": least, "choices": choices, "odd": odd, "none": none, "hint": hint}
    return field(default=default, metadata=bounds)


@functools.cache
def declared(module: str) -> type:
    """The class `Settings` of a mechanism's module, which is not imported; an empty one where it has none.

    Raises:
        ModuleNotFoundError: there is no such module.
    """
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no module named {module!r}", name=module)
    source = Path(spec.origin).read_text(encoding="utf-8")
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.ClassDef) and statement.name == "Settings":
            only = ast.Module([statement], [])
            annotations = __future__.annotations.compiler_flag
            names: dict[str, Any] = {"dataclass": dataclass, "setting": setting, "__name__": __name__}
            exec(compile(only, spec.origin, "exec", annotations), names)
            names["Settings"].SOURCE = ast.get_source_segment(source, statement)
            found: type = names["Settings"]
            return found
    return dataclass(type("Settings", (), {"SOURCE": "class Settings: pass"}))


def all_declared() -> tuple[type, ...]:
    """The `Settings` of every mechanism, in the registry's order."""
    return tuple(declared(place.partition(":")[0]) for place in MECHANISMS.values())


def declared_fields(attention: str | None = None) -> tuple[Field, ...]:
    """The fields of one mechanism, or of all."""
    places = MECHANISMS.values() if attention is None else (MECHANISMS[attention],)
    return tuple(one for place in places for one in fields(declared(place.partition(":")[0])))


def complaints(settings: Any) -> Iterator[str]:
    """A line for each impossible value among `model`'s settings."""
    for one in declared_fields():
        value, bounds = getattr(settings, one.name), one.metadata
        for wrong, fix in _mistakes(value, bounds):
            yield f"model.{one.name}={value!r} {wrong}: write {fix}"


def check(attention: str, values: dict[str, Any]) -> None:
    """Raise ValueError where a configuration's value is none that its mechanism can have."""
    for one in declared_fields(attention):
        value, bounds = values[one.name], one.metadata
        for wrong, fix in _mistakes(value, bounds):
            least = bounds["least"] is not None and not bounds["odd"]
            told = f" {wrong}: use {fix}" if not least else f": use {fix}{bounds['hint']}"
            raise ValueError(f"{one.name}={value!r}{told}")


def _mistakes(value: Any, bounds: Any) -> Iterator[tuple[str, str]]:
    """What is wrong, and what would be right."""
    if not bounds or value is None:
        return
    choices, least = bounds["choices"], bounds["least"]
    if choices is not None and value not in choices:
        yield "is unknown", f"one of {', '.join(choices)}"
    elif bounds["odd"] and (value < 1 or value % 2 == 0):
        yield "has no middle", "an odd number"
    elif least is not None and value < least:
        yield "is impossible", f"at least {least}"
