"""What a setting says about itself, all beside its field: default, role, possible values and its sentence.

    steps: int = result(100_000, at_least=1)
    loader_workers: int = speed(2, at_least=0)
    checkpoint: str | None = path(None, content="checkpoint")

The role says what a computation has of the setting; `identity` derives from it which folder is of which
settings. Possible values are said by `Limits`, and a value outside them is one line for the user.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import math
import textwrap
import types
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

from nystromformer.errors import UserError

KINDS: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list such as [a, b]",
}


class Role(Enum):
    """What changes with a setting."""

    RESULT = "what is computed"
    PATH = "where something is read: what it holds changes what is computed"
    GRID = "which of several computations, each with a place of its own"
    SPEED = "how fast and with how much memory; figures by no more than the order of sums does"
    PLACE = "where something is kept, whose content is known by itself"
    RECORD = "what is shown, kept or guarded on the way"


@dataclass(frozen=True)
class Limits:
    """The values that a setting, or each entry of a list, can have; null is none of their business."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    odd: bool = False
    choices: Iterable[str] = ()
    folder_name: bool = False
    """Whether it names one folder."""
    some: bool = False
    """Whether a list must not be empty."""
    noun: str = "number"
    fault: str = "impossible"
    write: str = ""
    """What to write instead, where that is more than the limits say."""

    def complaints(self, key: str, value: Any, optional: bool) -> Iterator[str]:
        """At most one line for a value, and one for each entry of a list."""
        if isinstance(value, list):
            if not value and self.some:
                yield f"{key}=[] measures nothing: write {self._some(key)}"
            for entry in value:
                if self._wrong(entry):
                    yield f"{key} holds {entry!r}: write {self._wanted(some=True)}"
        elif isinstance(value, float) and not math.isfinite(value):
            yield f"{key}={value} is impossible: write a finite number"
        elif wrong := self._wrong(value):
            shown = repr(value) if isinstance(value, str) else value
            null = ", or null" if optional and not (self.choices or self.write) else ""
            yield f"{key}={shown} {wrong}: write {self._wanted()}{null}"

    def mistake(self, value: Any) -> tuple[str, str] | None:
        """What is wrong with a value, and what would be right; None where nothing is."""
        wrong = self._wrong(value)
        return (wrong, self._wanted()) if wrong else None

    def _wrong(self, value: Any) -> str:
        if value is None or dataclasses.is_dataclass(value):
            return ""
        if self.choices and value not in self.choices:
            return "is unknown"
        if self.folder_name and (not value or "/" in value or value.startswith(".")):
            return "is no folder name"
        if self.odd and (value < 1 or value % 2 == 0):
            return "has no middle"
        if (
            (self.at_least is not None and value < self.at_least)
            or (self.above is not None and not value > self.above)
            or (self.at_most is not None and value > self.at_most)
            or (self.below is not None and not value < self.below)
        ):
            return f"is {self.fault}"
        return ""

    def _wanted(self, *, some: bool = False) -> str:
        if self.write:
            return self.write
        if self.choices:
            return f"{'some' if some else 'one'} of {', '.join(self.choices)}"
        if self.folder_name:
            return "letters, digits, - and _"
        if self.odd:
            return "an odd number"
        if self.at_least is None:
            end = f" and below {self.below}" if self.below is not None else ""
            end = f", at most {self.at_most}" if self.at_most is not None else end
            return f"a {self.noun} above {self.above}{end}"
        if self.at_most is None and self.below is None:
            return "0 or more" if self.at_least == 0 else f"at least {self.at_least}"
        end = f"to {self.at_most}" if self.below is None else f"to below {self.below}"
        return f"{'' if self.noun == 'number' else f'a {self.noun} from '}{self.at_least} {end}"

    def _some(self, key: str) -> str:
        return self._wanted(some=True) if self.choices else f"e.g. {key}=[{self.at_least}]"


def declare(
    role: Role, default: Any, *, of: str | tuple[str, ...] = (), content: str | None = None, **limits: Any
) -> Any:
    """A field of a section.

    Args:
        of: the only computations that it is a setting of, by name; none for all.
        content: for a path, the name of what it holds: it is compared by that where that is known.
        limits: see `Limits`.
    """
    about = {
        "role": role,
        "of": (of,) if isinstance(of, str) else of,
        "content": content,
        "limits": Limits(**limits),
    }
    if isinstance(default, list):
        return dataclasses.field(default_factory=default.copy, metadata=about)
    return dataclasses.field(default=default, metadata=about)


result = functools.partial(declare, Role.RESULT)
path = functools.partial(declare, Role.PATH)
grid = functools.partial(declare, Role.GRID)
speed = functools.partial(declare, Role.SPEED)
place = functools.partial(declare, Role.PLACE)
record = functools.partial(declare, Role.RECORD)


@dataclass(frozen=True)
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
    role: Role
    of: tuple[str, ...]
    content: str | None
    limits: Limits

    @property
    def wanted(self) -> str:
        """The type in words, for an error message."""
        return KINDS[self.kind] + (" or null" if self.optional else "")


@dataclass
class Section:
    """A dataclass of settings and of further sections.

    `class TrainingSettings(Section, at="training")` is what stands below `training.` on the command line.
    """

    AT: ClassVar[str] = ""

    def __init_subclass__(cls, at: str | None = None) -> None:
        if at is not None:
            cls.AT = f"{at}."

    def check(self) -> None:
        """Raise UserError with the complaints, one line each, where there are some."""
        if complaints := list(self.complaints()):
            raise UserError("\n".join(complaints))

    def complaints(self, at: str | None = None) -> Iterator[str]:
        """One line for each mistake: of a setting alone, of several together, then of the sections within.

        Args:
            at: what stands before the keys, where that is not the section's own place.
        """
        at, unread = self.AT if at is None else at, self.unread()
        schema: type = type(self)
        for setting in _own_settings(schema):
            value = getattr(self, setting.key)
            if setting.key not in unread:
                yield from setting.limits.complaints(at + setting.key, value, setting.optional)
        yield from self.complaints_together()
        for one in dataclasses.fields(self):
            if isinstance(section := getattr(self, one.name), Section) and one.name not in unread:
                yield from section.complaints()

    def complaints_together(self) -> Iterator[str]:
        """Mistakes that no setting makes alone."""
        yield from ()

    def unread(self) -> Iterable[str]:
        """Settings and sections that nothing reads, as the others are: their values do not matter."""
        return ()


def settings_of(schema: type, prefix: str = "") -> Iterator[Setting]:
    """Every leaf of the dataclass `schema` in order of definition, sections opened.

    Raises TypeError for a field whose role is not said.
    """
    own = {setting.key: setting for setting in _own_settings(schema)}
    for name, hint in _hints(schema).items():
        if name in own:
            yield dataclasses.replace(own[name], key=prefix + name)
        else:
            yield from settings_of(hint, f"{prefix}{name}.")


@functools.cache
def _own_settings(schema: type) -> tuple[Setting, ...]:
    """The settings of a section itself, under their bare names."""
    found, sentences, blank = [], _sentences(schema), schema()
    hints = _hints(schema)
    for field in dataclasses.fields(schema):
        if dataclasses.is_dataclass(hints[field.name]):
            continue
        if "role" not in field.metadata:
            raise TypeError(f"{schema.__name__}.{field.name} does not say what changes with it: see Role")
        kind, optional = _kind(hints[field.name])
        default = getattr(blank, field.name)
        found.append(
            Setting(
                field.name, kind, optional, default, sentences.get(field.name, ""), **field.metadata
            )
        )  # fmt: skip
    return tuple(found)


@functools.cache
def _hints(schema: type) -> dict[str, Any]:
    hints = typing.get_type_hints(schema)
    return {field.name: hints[field.name] for field in dataclasses.fields(schema)}


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
