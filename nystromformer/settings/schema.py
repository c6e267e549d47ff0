"""What a configuration dataclass says about itself: every setting's key, type, default and sentence."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import types
import typing
from collections.abc import Iterator
from typing import Any

KINDS: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list such as [a, b]",
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """One leaf of the configuration, as a user writes it on the command line."""

    key: str
    """Dotted, e.g. `training.steps`."""
    kind: type
    """One of KINDS."""
    optional: bool
    """Whether `null` is a value."""
    default: Any
    documentation: str

    @property
    def wanted(self) -> str:
        """The type in words, for an error message."""
        return KINDS[self.kind] + (" or null" if self.optional else "")


def settings_of(schema: type, prefix: str = "") -> Iterator[Setting]:
    """Every leaf of the dataclass `schema` in order of definition, sections opened."""
    hints = typing.get_type_hints(schema)
    sentences = _sentences(schema)
    blank = schema()
    for field in dataclasses.fields(schema):
        hint, key = hints[field.name], prefix + field.name
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            yield from settings_of(hint, key + ".")
            continue
        kind, optional = _kind(hint)
        yield Setting(key, kind, optional, getattr(blank, field.name), sentences.get(field.name, ""))


def _kind(hint: Any) -> tuple[type, bool]:
    """`int | None` → (int, True); `list[str]` → (list, False)."""
    optional = False
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = (part for part in typing.get_args(hint) if part is not types.NoneType)
        optional = True
    return typing.get_origin(hint) or hint, optional


def _sentences(schema: type) -> dict[str, str]:
    """The string literal below each field, its base classes' included; Python itself throws them away."""
    found: dict[str, str] = {}
    for base in reversed([base for base in schema.__mro__ if dataclasses.is_dataclass(base)]):
        found |= _own_sentences(base)
    return found


def _own_sentences(schema: type) -> dict[str, str]:
    source = schema.__dict__.get("SOURCE") or inspect.getsource(schema)  # a mechanism's is read elsewhere
    (definition,) = ast.parse(textwrap.dedent(source)).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        match field, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(sentence))),
            ):
                found[name] = " ".join(sentence.split())
    return found
