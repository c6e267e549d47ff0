"""Settings of the model, with those that each attention mechanism declares in its own file.

A mechanism's file imports torch, which the command line's help and checks must not wait for: so of the file
only its class `Settings` is run here. It may use literals, builtins, `dataclass` and `result`, which says
what a value may be.
"""

from __future__ import annotations

import ast
import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nystromformer.mechanisms import MECHANISMS
from nystromformer.settings.schema import Section, record, result, speed

ATTENTIONS = tuple(MECHANISMS)
_OTHER_NAMES = {"hidden_dropout": "hidden_dropout_prob", "attention_dropout": "attention_probs_dropout_prob"}


def configuration_name(setting: str) -> str:
    """What a model setting is called in the model's own configuration, if that has it."""
    return _OTHER_NAMES.get(setting, setting)


@functools.cache
def declared(attention: str) -> type:
    """The class `Settings` of a mechanism's module, which is not imported; an empty one where it has none.

    Raises:
        ModuleNotFoundError: there is no such module.
    """
    module = MECHANISMS[attention].partition(":")[0]
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no module named {module!r}", name=module)
    source = Path(spec.origin).read_text(encoding="utf-8")
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.ClassDef) and statement.name == "Settings":
            only = ast.Module([statement], [])
            names: dict[str, Any] = {"dataclass": dataclass, "result": result, "__name__": __name__}
            exec(compile(only, spec.origin, "exec"), names)
            names["Settings"].SOURCE = ast.get_source_segment(source, statement)
            found: type = names["Settings"]
            return found
    return dataclass(type("Settings", (), {"SOURCE": "class Settings: pass"}))


def declared_fields(attention: str | None = None) -> tuple[Field, ...]:
    """The fields of one mechanism, or of all."""
    names = MECHANISMS if attention is None else (attention,)
    return tuple(one for name in names for one in fields(declared(name)))


def check(attention: str, values: Mapping[str, Any]) -> None:
    """Raise ValueError where a configuration's value is none that its mechanism can have."""
    for one in declared_fields(attention):
        if wrong := one.metadata["limits"].mistake(values[one.name]):
            raise ValueError(f"{one.name}={values[one.name]!r} {wrong[0]}: use {wrong[1]}")


@dataclass
class _Shape(Section):
    attention: str = result("nystrom", choices=ATTENTIONS)
    """`nystrom`, `softmax` (exact attention, BERT's), `linformer`, `longformer` or `performer`."""
    hidden_size: int = result(768, at_least=1)
    num_hidden_layers: int = result(12, at_least=1)
    num_attention_heads: int = result(12, at_least=1)
    intermediate_size: int = result(3072, at_least=1)
    max_length: int = result(512, at_least=8, fault="too short")
    """Tokens of one example, special tokens included; also what the position table holds."""
    max_position_embeddings: int | None = result(None)
    """Positions in the table; empty means max_length."""


if TYPE_CHECKING:

    class _Declared(_Shape):
        def __getattr__(self, name: str) -> Any: ...

else:
    # Fields of bases come first, those of the last base before all.
    _Declared = type("_Declared", (*reversed([declared(attention) for attention in MECHANISMS]), _Shape), {})


@dataclass
class ModelSettings(_Declared, at="model"):
    """The encoder's shape and its attention, with what each mechanism declares in its own file; the
    vocabulary comes from the tokenizer."""

    conv_kernel_size: int | None = result(33, odd=True, write="an odd number, or null for no convolution")
    """Width of the residual convolution over the values, odd; empty for none."""
    hidden_dropout: float = result(0.1, noun="share", at_least=0, below=1)
    attention_dropout: float = result(0.0, noun="share", at_least=0, below=1)
    """Dropout on the attention matrix; only exact attention has one."""
    gradient_checkpointing: bool = speed(False)
    """Keep only each layer's input for the backward pass and compute the rest again."""
    from_source: list[str] = record([])
    """With init=bert or init=checkpoint: the settings above that are init.path's and not what stands here;
    the command line lists those that nobody wrote."""

    def is_known(self, *names: str) -> bool:
        """Whether the settings are what stands here."""
        return not set(names) & set(self.from_source)

    def complaints_together(self) -> Iterator[str]:
        shape_is_known = self.is_known("hidden_size", "num_attention_heads")
        if shape_is_known and self.num_attention_heads >= 1 and self.hidden_size % self.num_attention_heads:
            yield (
                f"model.num_attention_heads={self.num_attention_heads} does not divide "
                f"model.hidden_size={self.hidden_size}: write a divisor, e.g. "
                f"{_divisor_near(self.hidden_size, self.num_attention_heads)}"
            )
        positions = self.max_position_embeddings
        if positions is not None and positions < self.max_length and self.is_known("max_length"):
            yield (
                f"model.max_length={self.max_length} is beyond the position table of "
                f"model.max_position_embeddings={positions}: write max_length <= {positions}, or raise "
                "or remove max_position_embeddings"
            )
        can_drop = self.attention == "softmax" or not self.is_known("attention", "attention_dropout")
        if not can_drop and self.attention_dropout > 0:
            yield (
                f"model.attention_dropout={self.attention_dropout} cannot apply: {self.attention} attention "
                "has no attention matrix to drop from; write 0 and use model.hidden_dropout"
            )


INHERITED = tuple(
    part.name for part in fields(ModelSettings) if part.name not in ("gradient_checkpointing", "from_source")
)
"""Settings that init=bert and init=checkpoint take from the source where nobody wrote them."""


def _divisor_near(number: int, wanted: int) -> int:
    """The divisor of a number that is nearest to the one wanted, the smaller of two."""
    small = [d for d in range(1, math.isqrt(max(number, 0)) + 1) if number % d == 0]
    return min([*small, *(number // d for d in small)], key=lambda d: (abs(d - wanted), d), default=1)
