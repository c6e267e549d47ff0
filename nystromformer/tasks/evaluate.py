"""`nystromformer evaluate`: a fine-tuned model on a file, with figures where the file has labels."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax
from transformers import PreTrainedTokenizerBase

from nystromformer.data.cleaning import clean
from nystromformer.errors import UserError
from nystromformer.files import write_atomically
from nystromformer.model import NystromformerForSequenceClassification as Classifier
from nystromformer.model.layouts import load_model
from nystromformer.model.source import open_tokenizer
from nystromformer.settings import TrainingSettings
from nystromformer.settings.finetune import EvaluateSettings
from nystromformer.tasks.definitions import Task
from nystromformer.tasks.delimited import written
from nystromformer.tasks.encoding import encode
from nystromformer.tasks.export import taught
from nystromformer.tasks.glue import in_glues_layout
from nystromformer.tasks.metrics import figures_of
from nystromformer.tasks.plots import draw_confusion
from nystromformer.tasks.splits import Examples, read_examples
from nystromformer.tasks.table_files import PREDICTIONS, TableFile
from nystromformer.tasks.training import Logits, answers, predict
from nystromformer.training import devices


def evaluate(settings: EvaluateSettings) -> None:
    """Predict every row, write predictions.tsv and result.json, and print the figures.

    Raises:
        UserError: the model or the file is not usable, or the folder cannot be written.
    """
    folder = Path(str(settings.checkpoint)).expanduser()
    task, max_length = taught(folder)
    task = with_columns(settings, task)
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
        _write_predictions(place / "predictions.tsv", task, examples, logits)
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


def with_columns(settings: EvaluateSettings, task: Task) -> Task:
    """The task with the columns that the file has instead of its own; raises UserError for one too many."""
    texts = list(task.texts)
    if settings.text is not None:
        texts[0] = settings.text
    if settings.text_pair is not None:
        if len(texts) == 1:
            raise UserError(
                f"text_pair={settings.text_pair}: {task.title} has one text, no pairs: write null"
            )
        texts[1] = settings.text_pair
    return replace(task, texts=tuple(texts), label=settings.label or task.label)


def read_file(settings: EvaluateSettings, task: Task) -> Examples:
    """The rows of the file, with labels where it has the task's column of labels.

    Raises:
        UserError: no such file or column, a malformed row, or no row at all.
    """
    path = Path(str(settings.file)).expanduser()
    glues = in_glues_layout(path, task)
    file = TableFile(
        path,
        task.texts,
        headless=task.headless if glues and path.name in ("train.tsv", "dev.tsv") else (),  # CoLA's
        separator=settings.separator,
        quotes=False if glues and settings.quotes is None else settings.quotes,
    )
    labelled = settings.label is not None or file.has(task.label)
    if labelled:
        file.require(task.label)
    ids = {clean(name): number for names in (task.values, task.labels) for number, name in enumerate(names)}
    examples = read_examples(file, task, labelled=labelled, label_ids=ids)
    if not len(examples):
        raise UserError(f"{path} holds no rows below its header: bring some")
    return examples


def open_classifier(folder: Path, task: Task) -> tuple[Classifier, PreTrainedTokenizerBase]:
    """Model and tokenizer of a folder; raises UserError where the weights cannot be loaded."""
    model, _ = load_model(Classifier, str(folder), wrong=f"checkpoint={folder}", fix=": train it again")
    if model.config.num_labels != task.num_labels:
        raise UserError(
            f"checkpoint={folder} has {model.config.num_labels} labels, its task.json {task.num_labels}"
        )
    return model.eval(), open_tokenizer(None, str(folder))


def _write_predictions(path: Path, task: Task, examples: Examples, logits: Logits) -> None:
    """A line a row: its number, the answer, each class's probability, the label if it has one, the texts.

    Quoted where need be, so `evaluate` and pandas read what was read here, whatever stands in it.
    """
    index, prediction = PREDICTIONS
    columns: dict[str, list[str]] = {index: [str(number) for number in range(len(examples))]}
    if task.regression:
        columns[prediction] = [f"{value:.6g}" for value in logits[:, 0]]
    else:
        chances = softmax(logits, axis=1)
        columns[prediction] = [task.labels[number] for number in np.argmax(logits, axis=1)]
        for number, name in enumerate(task.labels):
            columns[f"p({name})"] = [f"{chance:.6f}" for chance in chances[:, number]]
    given = dict(zip(task.texts, (list(texts) for texts in zip(*examples.texts, strict=True)), strict=True))
    if examples.labels is not None:
        shown = [repr(label) if task.regression else task.labels[int(label)] for label in examples.labels]
        given = {task.label: shown, **given}
    # The task's columns keep their names, or this could not be read by them again.
    columns = {_unlike(name, (*task.texts, task.label)): cells for name, cells in columns.items()} | given
    write_atomically(path, written([list(columns), *zip(*columns.values(), strict=True)]))


def _unlike(name: str, taken: Collection[str]) -> str:
    while name in taken:
        name += "_"
    return name
