"""What all seeds of a task share: its data as token ids, described, and the checkpoint they start from."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nystromformer.data.layout import Batch, best_widths
from nystromformer.errors import UserError
from nystromformer.files import ContentHashes
from nystromformer.model import NystromformerConfig
from nystromformer.model.closed_form import fit_in_closed_form
from nystromformer.model.source import Source, content_of_checkpoint, open_source, open_tokenizer, written
from nystromformer.settings.finetune import FinetuneSettings, TaskModelSettings, TaskSettings
from nystromformer.tasks.identity import (
    Contents,
    content_of_tokenizer,
    contents_of_data,
    missing_data,
    short,
)
from nystromformer.tasks.reading import load_splits
from nystromformer.tasks.rows import Encoded, padded
from nystromformer.tasks.task import Splits, Task
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
    if settings.training.compile or settings.training.cuda_graphs:
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


# --- what they start from -----------------------------------------------------------------------------


@dataclass
class Checkpoint:
    """What all tasks and seeds start from, read once."""

    source: Source
    tokenizer: PreTrainedTokenizerBase
    config: NystromformerConfig
    """The classifier's, without its labels."""
    content: str
    """What the weights are, see `content_of_checkpoint`."""


def read_checkpoint(settings: FinetuneSettings) -> Checkpoint:
    """Read weights and tokenizer.

    Raises:
        UserError: no such checkpoint or tokenizer, or the two do not belong together.
    """
    path, changed = str(settings.checkpoint), settings.model
    source = open_source(path, setting="checkpoint")
    source.read()
    tokenizer = open_tokenizer(settings.tokenizer_path, path)
    source.check_tokenizer(tokenizer, settings.tokenizer_path or path)
    content = content_of_checkpoint(path)
    assert content is not None, "it has just been read"
    changes = {name: value for name, value in written(changed).items() if value is not None}
    if changed.max_length is not None:
        changes["max_position_embeddings"] = max(changed.max_length, source.config.max_position_embeddings)
    return Checkpoint(source, tokenizer, source.configuration(changes, section="model."), content)


def max_length_of(checkpoint: Checkpoint, settings: TaskModelSettings) -> int:
    """Tokens of one example."""
    return settings.max_length or checkpoint.config.max_position_embeddings


def build_classifier(
    checkpoint: Checkpoint, task: Task, settings: TaskModelSettings, train: Encoded, *, seed: int
) -> tuple[PreTrainedModel, str]:
    """The model with its first weights, and what became of the checkpoint's parts; a function of the seed.

    Kernels that the checkpoint has not are fitted, if that is asked for, on the longest training rows.
    """
    torch.manual_seed(seed)
    config = copy.deepcopy(checkpoint.config)
    task.configure(config)
    model, copied = checkpoint.source.model_with_head(task.head, config, positions=settings.positions)
    report = str(copied)
    if copied.can_be_fitted and settings.convolution != "zero":
        collate = partial(task.collate, labelled=False)
        rows = settings.convolution_rows
        report += f"\n  {fit_on_longest(model, train, rows, settings.convolution, collate)}"
    if settings.gradient_checkpointing:
        model.recompute_layers()
    return model, report


def fit_on_longest(
    model: PreTrainedModel,
    train: Encoded,
    rows: int,
    how: str,
    collate: Callable[[Encoded, list[int], int], Batch] = padded,
) -> str:
    """Fit what the checkpoint has not on the longest training rows, see `fit_in_closed_form`."""
    longest = np.argsort(-train.lengths, kind="stable")[:rows].tolist()
    batches = [collate(train, [row], model.config.pad_token_id or 0) for row in longest]
    # A row of a choice holds several texts; what a head reads besides is nothing to the encoder.
    inputs = ("input_ids", "attention_mask", "token_type_ids")
    texts = [{name: batch[name].flatten(0, -2) for name in inputs if name in batch} for batch in batches]
    return fit_in_closed_form(model.nystromformer, texts, how)
