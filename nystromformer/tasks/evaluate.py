"""`nystromformer evaluate`: a fine-tuned model on a file, with figures where the file has labels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax
from transformers import PreTrainedTokenizerBase

from nystromformer.errors import UserError
from nystromformer.files import write_atomically
from nystromformer.model import NystromformerForSequenceClassification as Classifier
from nystromformer.settings import TrainingSettings
from nystromformer.settings.finetune import EvaluateSettings
from nystromformer.tasks.definitions import Task
from nystromformer.tasks.encoding import encode
from nystromformer.tasks.export import taught
from nystromformer.tasks.metrics import figures_of
from nystromformer.tasks.plots import draw_confusion
from nystromformer.tasks.splits import Examples, read_examples
from nystromformer.tasks.start import open_tokenizer
from nystromformer.tasks.table_files import TableFile
from nystromformer.tasks.training import Logits, answers, predict
from nystromformer.training import devices


def evaluate(settings: EvaluateSettings) -> None:
    """Predict every row, write predictions.tsv and result.json, and print the figures.

    Raises:
        UserError: the model or the file is not usable, or the folder cannot be written.
    """
    folder = Path(str(settings.checkpoint)).expanduser()
    task, max_length = taught(folder)
    examples = read_file(settings, task)
    model, tokenizer = open_classifier(folder, task)
    accelerator = devices.open_accelerator(TrainingSettings(precision=settings.precision))
    model.to(accelerator.device)
    dtype = devices.precision(TrainingSettings(precision=settings.precision), accelerator.device)
    encoded = encode(examples, tokenizer, max_length)
    logits = predict(
        model,
        encoded,
        settings.batch_size,
        int(tokenizer.pad_token_id),
        devices.autocast(dtype, accelerator.device),
    )
    found = answers(logits, regression=task.regression)
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
        for name in ("result.json", "confusion.png"):  # of another file or model; result.json comes last
            (place / name).unlink(missing_ok=True)
        _write_predictions(place / "predictions.tsv", task, logits)
        if examples.labels is not None:
            result["figures"] = figures_of(task, examples.labels, found)
            if not task.regression:
                path = place / "confusion.png"
                result["confusion"] = draw_confusion(task, examples.labels, found, path, task.title)
        write_atomically(place / "result.json", json.dumps(result, indent=2) + "\n")
    except OSError as error:
        raise UserError(
            f"folder={settings.folder} cannot be written ({error.strerror}): write another"
        ) from None
    print(f"{settings.file}: {len(examples):,} examples, {encoded.truncated:.1%} cut to {max_length} tokens")
    for name, value in result.get("figures", {}).items():
        print(f"  {name} {value:.4f}")
    print(place / "predictions.tsv")


def read_file(settings: EvaluateSettings, task: Task) -> Examples:
    """The rows of the file, with labels where it has the column; columns are those of the task, or given.

    Raises:
        UserError: no such file or column, or a malformed row.
    """
    path = Path(str(settings.file)).expanduser()
    texts = list(task.texts)
    if settings.text is not None:
        texts[0] = settings.text
    if settings.text_pair is not None:
        if len(texts) == 1:
            raise UserError(
                f"text_pair={settings.text_pair}: {task.title} has one text, no pairs: write null"
            )
        texts[1] = settings.text_pair
    task = replace(task, texts=tuple(texts), label=settings.label or task.label)
    headless = task.headless if path.name in ("train.tsv", "dev.tsv") else ()  # CoLA's
    file = TableFile(path, task.texts, headless=headless)
    labelled = task.label in file.columns
    if settings.label is not None and not labelled:
        raise UserError(
            f"{path} has no column {settings.label!r}: it has {', '.join(map(repr, file.columns))}"
        )
    if not labelled:
        return read_examples(file, task, labelled=False)
    ids = {value: number for number, value in enumerate(task.values)}
    ids |= {name: number for number, name in enumerate(task.labels)}
    return read_examples(file, task, labelled=True, label_ids=ids)


def open_classifier(folder: Path, task: Task) -> tuple[Classifier, PreTrainedTokenizerBase]:
    """Model and tokenizer of a folder; raises UserError where the weights cannot be loaded."""
    try:
        model = Classifier.from_pretrained(folder, use_safetensors=True)
    except (OSError, ValueError, RuntimeError) as error:
        first_line = str(error).splitlines()[0]
        raise UserError(
            f"checkpoint={folder}: cannot load the weights ({first_line}): train it again"
        ) from None
    if model.config.num_labels != task.num_labels:
        raise UserError(
            f"checkpoint={folder} has {model.config.num_labels} labels, its task.json {task.num_labels}"
        )
    return model.eval(), open_tokenizer(None, str(folder))


def _write_predictions(path: Path, task: Task, logits: Logits) -> None:
    """One line a row: its number, the answer, and each class's probability."""
    if task.regression:
        rows = [f"{number}\t{value:.6g}" for number, value in enumerate(logits[:, 0])]
        head = "index\tprediction"
    else:
        chances = softmax(logits, axis=1)
        head = "\t".join(["index", "prediction", *(f"p({name})" for name in task.labels)])
        rows = [
            "\t".join([str(number), task.labels[int(np.argmax(row))], *(f"{p:.6f}" for p in row)])
            for number, row in enumerate(chances)
        ]
    path.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
