"""What a model's forward is given: a misspelt argument is an error that names the near one."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable
from typing import Any

from transformers.utils.generic import TransformersKwargs, can_return_tuple

PASSED_BY_TRANSFORMERS = frozenset({"num_items_in_batch", "return_loss", "skip_logits"})
"""What transformers' Trainer may pass to any model, and what changes nothing in one that does not take it."""

ABSENT_BY_TRANSFORMERS = frozenset(TransformersKwargs.__annotations__) | {
    "cache_position",
    "encoder_attention_mask",
    "encoder_hidden_states",
    "head_mask",
    "past_key_values",
    "use_cache",
}
"""What transformers' models take and these do not: allowed as None or False, which ask for nothing."""


def model_forward(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A model's forward that refuses unknown arguments, and gives a tuple for `return_dict=False`.

    The tuple holds the output's entries that are not None, in their order. `return_dict=None` takes what
    the configuration says.
    """
    known = tuple(inspect.signature(forward).parameters)[1:]

    @functools.wraps(forward)
    def checked(self: Any, *args: Any, **kwargs: Any) -> Any:
        for name in [name for name in kwargs if name not in known]:
            _refuse_unknown(type(self).__name__, name, kwargs.pop(name), known)
        return forward(self, *args, **kwargs)

    wrapped: Callable[..., Any] = can_return_tuple(checked)
    return wrapped


def _refuse_unknown(model: str, name: str, value: object, known: tuple[str, ...]) -> None:
    if name in PASSED_BY_TRANSFORMERS:
        return
    if name in ABSENT_BY_TRANSFORMERS and (value is None or value is False):
        return
    near = difflib.get_close_matches(name, (*known, "return_dict"), n=1)
    hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join((*known, 'return_dict'))}"
    raise TypeError(f"{model}.forward() got an unexpected argument {name!r}: {hint}")
