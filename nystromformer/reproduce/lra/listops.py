"""ListOps: expressions of nested lists whose value, a digit, is the class.

    [MAX 4 3 [MIN 2 3 ] 1 0 [MED 1 5 8 9 2 ] ]   →   5

The grammar and the draws are those of Long Range Arena's generator: a node is an operator with
probability 0.25, where the depth allows one, else a digit; an operator takes 2 to `arguments` of them;
operators are MIN, MAX, MED (the median, rounded down) and SM (the sum modulo 10). Expressions whose
number of tokens is outside the limits are drawn again, and none occurs twice.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nystromformer.errors import UserError

OPERATORS: dict[str, Callable[[Sequence[int]], int]] = {
    "[MIN": min,
    "[MAX": max,
    "[MED": lambda values: int(statistics.median(values)),
    "[SM": lambda values: sum(values) % 10,
}
END = "]"
VOCABULARY = ("[PAD]", *map(str, range(10)), *OPERATORS, END)
"""A token's id is its place; digit d has d + 1."""
CLASSES = 10

_ID = {token: number for number, token in enumerate(VOCABULARY)}
_NAMES = tuple(OPERATORS)
_OPERATOR_SHARE = 0.25
_MOST_DRAWS = 10_000
"""Draws for one expression after which the limits count as impossible: usual is one in some dozens."""


@dataclass(frozen=True)
class Grammar:
    """What expressions may look like."""

    shortest: int
    """Tokens; brackets with their operator count as one, as in the original."""
    longest: int
    depth: int
    """Levels, the digits of the innermost list included."""
    arguments: int
    """Most of one operator."""


class _TooLong(Exception):
    pass


def expressions(grammar: Grammar, count: int, seed: int) -> tuple[list[list[int]], list[int]]:
    """`count` different expressions as token ids, and their values; the same for the same arguments.

    Raises:
        UserError: the grammar hardly ever makes an expression within the limits, or not so many.
    """
    generator = random.Random(seed)
    texts: list[list[int]] = []
    values: list[int] = []
    seen: set[bytes] = set()
    failed = 0
    while len(texts) < count:
        tokens: list[int] = []
        try:
            value = _draw(generator, grammar, 1, tokens)
        except _TooLong:
            value = -1
        key = bytes(tokens)
        if value < 0 or len(tokens) < grammar.shortest or key in seen:
            failed += 1
            if failed > _MOST_DRAWS:
                raise UserError(
                    f"ListOps: of {_MOST_DRAWS:,} expressions none was new and had {grammar.shortest} to "
                    f"{grammar.longest} tokens, after {len(texts):,} of {count:,}: write a wider range, or "
                    "more depth or arguments, in scale.lra"
                )
            continue
        failed = 0
        seen.add(key)
        texts.append(tokens)
        values.append(value)
    return texts, values


def _draw(generator: random.Random, grammar: Grammar, depth: int, tokens: list[int]) -> int:
    """Append one node's tokens and return its value; raises _TooLong as soon as it cannot fit."""
    if len(tokens) >= grammar.longest:
        raise _TooLong
    if depth >= grammar.depth or generator.random() > _OPERATOR_SHARE:
        digit = generator.randrange(10)
        tokens.append(digit + 1)
        return digit
    operator = _NAMES[generator.randrange(len(_NAMES))]
    tokens.append(_ID[operator])
    values = [
        _draw(generator, grammar, depth + 1, tokens) for _ in range(generator.randint(2, grammar.arguments))
    ]
    if len(tokens) >= grammar.longest:
        raise _TooLong
    tokens.append(_ID[END])
    return OPERATORS[operator](values)
