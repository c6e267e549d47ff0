"""What all seeds of a task share: its data as token ids, described, and what they start from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray

from nystromformer.data.layout import best_widths
from nystromformer.errors import UserError
from nystromformer.files import ContentHashes
from nystromformer.model.source import content_of_checkpoint, open_tokenizer
from nystromformer.settings.finetune import FinetuneSettings, TaskSettings
from nystromformer.tasks.contents import (
    Contents,
    content_of_tokenizer,
    contents_of_data,
    missing_data,
    short,
)
from nystromformer.tasks.reading import load_splits
from nystromformer.tasks.start import Checkpoint, max_length_of
from nystromformer.tasks.task import Encoded, Splits, Task
from nystromformer.training.signals import StopRequest
from nystromformer.training.together import Together


@dataclass
class TaskSetup:
    """What all seeds of a task share."""

    settings: FinetuneSettings
    checkpoint: Checkpoint
    splits: Splits
    train: Encoded
    dev: dict[str, Encoded]
    test: dict[str, Encoded]
    """The labelled ones alone."""
    contents: Contents
    """What the seeds are trained on and from."""
    accelerator: Accelerator
    together: Together
    stop: StopRequest

    @property
    def pad_token_id(self) -> int:
        return int(self.checkpoint.tokenizer.pad_token_id)


def prepare_task(
    settings: FinetuneSettings,
    task: TaskSettings,
    checkpoint: Checkpoint,
    accelerator: Accelerator,
    together: Together,
    stop: StopRequest,
) -> TaskSetup:
    """Load and tokenize a task's data, and print what there is to say about them."""
    splits = load_splits(task, settings.data)
    max_length = max_length_of(checkpoint, settings.model)
    labelled_test = {name: part for name, part in splits.test.items() if part.labels is not None}
    parts = {"train": splits.train, **splits.dev, **labelled_test}
    encoded = {
        name: splits.task.encode(part, checkpoint.tokenizer, max_length) for name, part in parts.items()
    }
    if settings.training.compile:
        widths = best_widths(encoded["train"].lengths, max_length)
        encoded = {name: replace(part, widths=widths) for name, part in encoded.items()}
    tell = say if together.rank == 0 else lambda label, text: None
    landmarks = checkpoint.config.num_landmarks if checkpoint.config.attention == "nystrom" else None
    tell(
        splits.task.title, "\n".join([splits.origin, *describe(splits.task, encoded, max_length, landmarks)])
    )
    if splits.skipped:
        rows = splits.skipped
        tell(splits.task.title, f"{len(rows):,} malformed rows were left out, the first: {rows[0]}")
    return TaskSetup(
        settings,
        checkpoint,
        splits,
        train=encoded["train"],
        dev={name: encoded[name] for name in splits.dev},
        test={name: encoded[name] for name in labelled_test},
        contents={
            "checkpoint": short(checkpoint.content),
            "tokenizer": content_of_tokenizer(checkpoint.tokenizer),
            **contents_of_data(splits),
        },
        accelerator=accelerator,
        together=together,
        stop=stop,
    )


def contents_there(
    settings: FinetuneSettings, task: TaskSettings, hashes: ContentHashes
) -> tuple[Contents, list[str]]:
    """What a task would be trained on and from, as far as it is still there, without training.

    Returns:
        The contents, and the settings that name something which is gone.

    Raises:
        UserError: something is there and cannot be read.
    """
    found: Contents = {}
    gone: list[str] = []
    path = str(settings.checkpoint)
    if (content := content_of_checkpoint(path, hashes)) is not None:
        found["checkpoint"] = short(content)
    else:
        gone.append(f"checkpoint={path}")
    if content is not None or settings.tokenizer_path:
        found["tokenizer"] = content_of_tokenizer(open_tokenizer(settings.tokenizer_path, path))
    try:
        found |= contents_of_data(load_splits(task, settings.data))
    except UserError:
        if not (missing := missing_data(settings.data)):
            raise
        gone += missing
    return found, gone


def say(label: str, text: str) -> None:
    """Print lines, each with what they are about."""
    for line in text.splitlines():
        print(f"{label}: {line}", flush=True)


# --- description --------------------------------------------------------------------------------------


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
