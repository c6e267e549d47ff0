"""Texts as token ids, cut to the model's length, and what there is to say about them before training."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from nystromformer.tasks.definitions import Task
from nystromformer.tasks.splits import Examples

_AT_ONCE = 1000
"""Texts tokenized in one call: enough for the tokenizer's threads, little for the memory."""


@dataclass
class Encoded:
    """Examples as a model reads them."""

    input_ids: list[list[int]]
    token_type_ids: list[list[int]] | None
    """None where the tokenizer has no segments."""
    labels: list[float] | None
    lengths: NDArray[np.int64]
    """Tokens of each after the cut."""
    full_lengths: NDArray[np.int64]
    """Tokens of each before it."""

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def truncated(self) -> float:
        """Share of the examples that were cut."""
        return float((self.full_lengths > self.lengths).mean()) if len(self) else 0.0


def encode(examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded:
    """`[CLS] A [SEP]` or `[CLS] A [SEP] B [SEP]`; of a pair, the longer text is cut first."""
    ids: list[list[int]] = []
    types: list[list[int]] = []
    full: list[int] = []
    for start in range(0, len(examples), _AT_ONCE):
        batch = examples.texts[start : start + _AT_ONCE]
        columns = [list(column) for column in zip(*batch, strict=True)]
        whole = tokenizer(*columns, truncation=False, verbose=False)
        full.extend(len(row) for row in whole["input_ids"])
        cut = whole
        if max(full[start:]) > max_length:
            cut = tokenizer(*columns, truncation="longest_first", max_length=max_length, verbose=False)
        ids.extend(cut["input_ids"])
        types.extend(cut.get("token_type_ids", []))
    lengths = np.array([len(row) for row in ids], np.int64)
    return Encoded(ids, types or None, examples.labels, lengths, np.array(full, np.int64))


def describe(task: Task, parts: dict[str, Encoded], max_length: int, num_landmarks: int | None) -> list[str]:
    """Lines on class balance, lengths and cuts of each set, to be printed before training."""
    lines = []
    for name, part in parts.items():
        lines.append(f"{name}: {len(part):,} examples" + (f"; {_balance(task, part)}" if part.labels else ""))
        middle, high = (int(np.quantile(part.full_lengths, q, method="nearest")) for q in (0.5, 0.95))
        line = (
            f"  tokens: median {middle}, 95 % below {high + 1}, longest {part.full_lengths.max()}; "
            f"{part.truncated:.1%} cut to {max_length}"
        )
        if num_landmarks is not None:
            short = float((part.lengths <= num_landmarks).mean())
            line += f"; {short:.1%} have at most {num_landmarks}, the number of landmarks"
        lines.append(line)
    lines += _histogram(next(iter(parts.values())).full_lengths)
    return lines


def facts(task: Task, part: Encoded) -> dict:
    """The same for a JSON file."""
    return {
        "examples": len(part),
        "truncated": part.truncated,
        "median_tokens": float(np.median(part.full_lengths)),
        "longest_tokens": int(part.full_lengths.max()),
        "classes": {} if task.regression or not part.labels else dict(_counts(task, part)),
    }


def _counts(task: Task, part: Encoded) -> list[tuple[str, int]]:
    counts = Counter(part.labels or [])
    return [(name, counts[number]) for number, name in enumerate(task.labels)]


def _balance(task: Task, part: Encoded) -> str:
    labels = part.labels or []
    if task.regression:
        return f"labels {min(labels):g} to {max(labels):g}, mean {np.mean(labels):.2f}"
    counts = _counts(task, part)
    shown = ", ".join(f"{name} {count / len(part):.1%}" for name, count in counts[:6])
    return shown + (f" and {len(counts) - 6} more classes" if len(counts) > 6 else "")


def _histogram(lengths: NDArray[np.int64]) -> list[str]:
    """Rows of doubling width: 1-16, 17-32, 33-64 …, with a bar each."""
    edges = [0, 16]
    while edges[-1] < lengths.max():
        edges.append(2 * edges[-1])
    counts, _ = np.histogram(lengths, bins=[edge + 0.5 for edge in edges])
    widest = max(counts.max(), 1)
    return [
        f"  {low + 1:>6} to {high:<6} {count / len(lengths):>6.1%} {'#' * round(30 * count / widest)}"
        for low, high, count in zip(edges, edges[1:], counts, strict=False)
    ]
