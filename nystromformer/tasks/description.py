"""What there is to say about a task's data before training: balance of the labels, lengths, cuts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nystromformer.tasks.task import Encoded, Task


def describe(task: Task, parts: dict[str, Encoded], max_length: int, num_landmarks: int | None) -> list[str]:
    """Lines on class balance, lengths and cuts of each set, to be printed before training."""
    lines = []
    for name, part in parts.items():
        balance = f"; {task.balance(part.labels)}" if part.labels else ""
        lines.append(f"{name}: {part.examples:,} examples{balance}")
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


def facts(task: Task, part: Encoded) -> dict[str, Any]:
    """The same for a JSON file."""
    return {
        "examples": part.examples,
        "truncated": part.truncated,
        "median_tokens": float(np.median(part.full_lengths)),
        "longest_tokens": int(part.full_lengths.max()),
        "classes": task.counts(part.labels),
    }


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
