"""A fine-tuned model in transformers' layout: weights, label names, tokenizer, card, and what it was taught.

`task.json` beside the weights holds the task itself, so that `evaluate` knows columns, labels and metrics.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nystromformer.errors import UserError
from nystromformer.files import write_atomically
from nystromformer.model.layouts import load_model
from nystromformer.model.source import open_tokenizer
from nystromformer.settings import TrainingSettings
from nystromformer.tasks.jobs import Job
from nystromformer.tasks.setup import TaskSetup, max_length_of
from nystromformer.tasks.task import Task, from_stored, stored
from nystromformer.training import devices


def export(
    model: PreTrainedModel, task: Task, setup: TaskSetup, job: Job, figures: dict[str, float], folder: Path
) -> None:
    """Write the folder; raises UserError where the disk does not take it."""
    tokenizer = setup.checkpoint.tokenizer
    max_length = max_length_of(setup.checkpoint, setup.settings.model)
    tokenizer.model_max_length = max_length
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        taught = {
            **stored(task),
            "max_length": max_length,
            "dev": figures,
            "seed": job.seed,
            "cell": job.cell,
        }
        for path, content in task.files(model.config, max_length).items():
            (folder / path).parent.mkdir(exist_ok=True)
            write_atomically(folder / path, json.dumps(content, indent=2) + "\n")
        write_atomically(folder / "task.json", json.dumps(taught, indent=2) + "\n")
        write_atomically(folder / "README.md", _card(task, setup, job, figures))
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror or error}): free space, and the same "
            "command writes it"
        ) from None


def taught(folder: Path) -> tuple[Task, int]:
    """The task of a fine-tuned model and its length; raises UserError where `finetune` did not write it."""
    try:
        content = json.loads((folder / "task.json").read_text(encoding="utf-8"))
        return from_stored(content), int(content["max_length"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"checkpoint={folder} is no fine-tuned model (task.json: {type(error).__name__}): write a "
            "model folder that nystromformer finetune wrote, e.g. runs/finetune/sst2/model"
        ) from None


def open_model(
    folder: Path, task: Task, setting: str = "checkpoint", **changes: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a folder.

    Args:
        setting: what the folder was given by, for messages.
        changes: of the model's configuration, such as `attention="softmax"`.

    Raises:
        UserError: the weights cannot be loaded, or are of another task.
    """
    wrong = f"{setting}={folder}"
    model, _ = load_model(task.head, str(folder), wrong=wrong, fix=": train it again", **changes)
    if model.config.num_labels != task.num_labels:
        raise UserError(f"{wrong} has {model.config.num_labels} labels, its task.json {task.num_labels}")
    return model.eval(), open_tokenizer(None, str(folder))


def to_device(
    model: torch.nn.Module, precision: str, device: str | torch.device | None = None
) -> torch.autocast:
    """Put a model on a device, by default a GPU if there is one; what it is to compute in there."""
    recipe = TrainingSettings(precision=precision)
    place = torch.device(device) if device else devices.open_accelerator(recipe).device
    model.eval().to(place)
    return devices.autocast(devices.precision(recipe, place), place)


def _card(task: Task, setup: TaskSetup, job: Job, figures: dict[str, float]) -> str:
    shown = "\n".join(
        f"| {name} | {figures[name]:.4f} |" for name in figures if name not in ("loss", "score")
    )
    config = setup.checkpoint.config
    return f"""---
library_name: {task.library}
pipeline_tag: {task.pipeline}
tags: [nystromformer]
---

# {task.title}

`{setup.settings.checkpoint}` with {config.attention} attention, fine-tuned by
[nystromformer](https://pypi.org/project/nystromformer/) for {job.task.epochs:g} epochs of batches of
{job.batch_size} at {job.learning_rate:g}, seed {job.seed}.

| {next(iter(setup.dev.values())).examples:,} held-out examples | |
|---|---:|
{shown}

The checkpoint of the run was chosen by these same examples.

```python
import nystromformer.model  # transformers' Auto classes then run these classes: without it the head is lost
from transformers import pipeline

{task.usage()}
```

Without that import {task.forgotten}
"""
