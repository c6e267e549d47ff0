"""The attention mechanisms: a line for each, and the settings that each declares in its own file.

A mechanism is one file with a dataclass `Settings`, whose fields become `model.…` of every command and keys
of `config.json`, and a subclass of `attention.mechanism.Mechanism`, which MECHANISMS names. The file imports
torch, which the command line's help and checks must not wait for: so of the file only `Settings` is run here.
It may use literals, builtins, `dataclass` and `result`, which says what a value may be.
"""

from __future__ import annotations
import __future__

import ast
import functools
from collections.abc import Mapping
from dataclasses import Field, dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nystromformer.settings.schema import result

MECHANISMS = {
    "nystrom": "nystromformer.attention.nystrom:NystromAttention",
    "softmax": "nystromformer.attention.softmax:SoftmaxAttention",
    "linformer": "nystromformer.attention.linformer:LinformerAttention",
    "longformer": "nystromformer.attention.longformer:LongformerAttention",
    "performer": "nystromformer.attention.performer:PerformerAttention",
}
"""What `model.attention` can be, and the module and class that compute it; a new one is its file and a line
here."""


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
            names: dict[str, Any] = {"dataclass": dataclass, "result": result, "__name__": __name__}
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


def check(attention: str, values: Mapping[str, Any]) -> None:
    """Raise ValueError where a configuration's value is none that its mechanism can have."""
    for one in declared_fields(attention):
        if wrong := one.metadata["limits"].mistake(values[one.name]):
            raise ValueError(f"{one.name}={values[one.name]!r} {wrong[0]}: use {wrong[1]}")
