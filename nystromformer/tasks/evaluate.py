"""`nystromformer evaluate`: a fine-tuned model on a file, with figures where the file has labels."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nystromformer.errors import UserError
from nystromformer.files import write_atomically
from nystromformer.model.layouts import load_model
from nystromformer.model.source import open_tokenizer
from nystromformer.settings import TrainingSettings
from nystromformer.settings.finetune import EvaluateSettings
from nystromformer.tasks.export import taught
from nystromformer.tasks.task import Examples, Task
from nystromformer.tasks.training import outputs_of
from nystromformer.training import devices


def evaluate(settings: EvaluateSettings) -> None:
    """Predict every row, write the predictions and result.json, and print the figures.

    Raises:
        UserError: the model or the file is not usable, or the folder cannot be written.
    """
    folder = Path(str(settings.checkpoint)).expanduser()
    task, max_length = taught(folder)
    task = task.of_file(settings)
    examples = read_file(settings, task)
    model, tokenizer = open_model(folder, task)
    accelerator = devices.open_accelerator(TrainingSettings(precision=settings.precision))
    model.to(accelerator.device)
    dtype = devices.precision(TrainingSettings(precision=settings.precision), accelerator.device)
    encoded = task.encode(examples, tokenizer, max_length)
    autocast = devices.autocast(dtype, accelerator.device)
    outputs = outputs_of(task, model, encoded, settings.batch_size, int(tokenizer.pad_token_id), autocast)
    predictions = task.predict(encoded, outputs)
    result: dict[str, Any] = {
        "checkpoint": str(folder),
        "file": settings.file,
        "task": task.name,
        "examples": len(examples),
        "truncated": encoded.truncated,
    }
    place = Path(settings.folder).expanduser()
    try:
        place.mkdir(parents=True, exist_ok=True)
        for name in ("result.json", *task.pictures):  # of another file or model; result.json comes last
            (place / name).unlink(missing_ok=True)
        write_atomically(place / task.predictions, task.written(examples, predictions, outputs))
        if examples.labels is not None:
            result["figures"] = task.figures(examples.labels, predictions)
            drawn = task.draw(examples.labels, predictions, place, task.title)
            result |= {name: value for name, value in drawn.items() if value is not None}
        write_atomically(place / "result.json", json.dumps(result, indent=2) + "\n")
    except OSError as error:
        raise UserError(
            f"folder={settings.folder} cannot be written ({error.strerror}): write another"
        ) from None
    print(f"{settings.file}: {len(examples):,} examples, {encoded.truncated:.1%} cut to {max_length} tokens")
    for name, value in result.get("figures", {}).items():
        print(f"  {name} {value:.4f}")
    print(place / task.predictions)


def read_file(settings: EvaluateSettings, task: Task) -> Examples:
    """All examples of the file, with labels where it has the task's.

    Raises:
        UserError: no such file or column, a malformed row, or no row at all.
    """
    examples = next(task.read(settings, sys.maxsize), None)
    if examples is None:
        raise UserError(f"{Path(str(settings.file)).expanduser()} holds no rows below its header: bring some")
    return examples


def open_model(folder: Path, task: Task) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a folder; raises UserError where the weights cannot be loaded."""
    model, _ = load_model(task.head, str(folder), wrong=f"checkpoint={folder}", fix=": train it again")
    if model.config.num_labels != task.num_labels:
        raise UserError(
            f"checkpoint={folder} has {model.config.num_labels} labels, its task.json {task.num_labels}"
        )
    return model.eval(), open_tokenizer(None, str(folder))
