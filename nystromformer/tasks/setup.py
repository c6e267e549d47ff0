"""What all seeds of a task share: its data as token ids, and what they start from."""

from __future__ import annotations

from dataclasses import dataclass

from accelerate import Accelerator

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
from nystromformer.tasks.encoding import Encoded, describe, encode
from nystromformer.tasks.load import load_splits
from nystromformer.tasks.splits import Splits
from nystromformer.tasks.start import Checkpoint, max_length_of
from nystromformer.training.signals import StopRequest


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
    stop: StopRequest

    @property
    def pad_token_id(self) -> int:
        return int(self.checkpoint.tokenizer.pad_token_id)


def prepare_task(
    settings: FinetuneSettings,
    task: TaskSettings,
    checkpoint: Checkpoint,
    accelerator: Accelerator,
    stop: StopRequest,
) -> TaskSetup:
    """Load and tokenize a task's data, and print what there is to say about them."""
    splits = load_splits(task, settings.data)
    max_length = max_length_of(checkpoint, settings.model)
    labelled_test = {name: part for name, part in splits.test.items() if part.labels is not None}
    parts = {"train": splits.train, **splits.dev, **labelled_test}
    encoded = {name: encode(part, checkpoint.tokenizer, max_length) for name, part in parts.items()}
    landmarks = checkpoint.config.num_landmarks if checkpoint.config.attention == "nystrom" else None
    say(splits.task.title, "\n".join([splits.origin, *describe(splits.task, encoded, max_length, landmarks)]))
    if splits.skipped:
        rows = splits.skipped
        say(splits.task.title, f"{len(rows):,} malformed rows were left out, the first: {rows[0]}")
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
        stop=stop,
    )


def contents_there(
    settings: FinetuneSettings, task: TaskSettings, hashes: ContentHashes
) -> tuple[Contents, Splits | None, list[str]]:
    """What a task would be trained on and from, as far as it is still there, without training.

    Returns:
        The contents, the data, and the settings that name something which is gone.

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
    splits = None
    try:
        splits = load_splits(task, settings.data)
    except UserError:
        if not (missing := missing_data(settings.data)):
            raise
        gone += missing
    return found | (contents_of_data(splits) if splits else {}), splits, gone


def say(label: str, text: str) -> None:
    """Print lines, each with what they are about."""
    for line in text.splitlines():
        print(f"{label}: {line}", flush=True)
