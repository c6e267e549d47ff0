"""`predict`: a fine-tuned model on a file of any size; `evaluate`, the same on one with labels.

    rows of the file → chunks → batches of like length → outputs → lines in the rows' order → progress.json

A chunk holds so many rows or characters, whichever comes first, and no more is in memory. Chunks and batches
depend on file and settings alone: what was killed goes on, and its file is that of an undisturbed run.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nystromformer.errors import UserError
from nystromformer.files import ContentHashes, held, write_atomically
from nystromformer.model.layouts import load_model
from nystromformer.model.source import content_of_checkpoint, open_tokenizer
from nystromformer.settings import TrainingSettings
from nystromformer.settings.finetune import EvaluateSettings, PredictSettings, SwapSettings
from nystromformer.settings.retrieval import EvaluateCommandSettings
from nystromformer.settings.schema import Role, settings_of
from nystromformer.tasks import vectors
from nystromformer.tasks.contents import content_of_tokenizer, short
from nystromformer.tasks.embedding import Embedder, own_length, swap
from nystromformer.tasks.export import taught
from nystromformer.tasks.growing import (
    PROGRESS,
    GrowingFiles,
    growing,
    name_for_good,
    note_progress,
    read_progress,
    written_so_far,
)
from nystromformer.tasks.kinds.embed import EmbedTask
from nystromformer.tasks.parts import SHOWN, Part, Progress, chunks, json_lines, table
from nystromformer.tasks.retrieval import evaluate_collection
from nystromformer.tasks.task import Task, stored
from nystromformer.tasks.training import outputs_of
from nystromformer.training import devices
from nystromformer.training.display import ProgressDisplay

_CHARACTERS = 64
"""A chunk holds at most so many for each token of a batch: some 16 batches."""
_BETWEEN_LINES = 10.0
"""Seconds between two lines of progress in a log."""
_COMPARED = "compared.jsonl"
"""Labels and predictions of a labelled file, until its figures are known."""
_ERRORS = "errors.jsonl"
_HASHES = "hashes.json"
_RESULT = "result.json"


def evaluate(settings: EvaluateCommandSettings) -> None:
    """Predict every row anew, write the predictions and result.json, and print the figures; or rank the
    documents of a folder.

    Raises:
        UserError: the model or the file is not usable, or the folder cannot be written.
    """
    if Path(str(settings.file)).expanduser().is_dir():
        evaluate_collection(settings)
    else:
        _Prediction(settings, "own", anew=True).run()


def predict(settings: PredictSettings) -> None:
    """Predict every row, or go on where that was stopped; figures too where the file has labels.

    Raises:
        UserError: as `evaluate`; or the folder is of other predictions, or another process has it.
    """
    _Prediction(settings, settings.format, anew=False).run()


class _Prediction:
    """A file, a model, and the folder where predictions go."""

    def __init__(self, settings: EvaluateSettings, form: str | None, *, anew: bool) -> None:
        self._settings = settings
        self._anew = anew
        self._folder = Path(settings.folder).expanduser()
        self._checkpoint = Path(str(settings.checkpoint)).expanduser()
        task, self._max_length = self._of_checkpoint()
        self._task = task.of_file(settings)
        self._path = Path(str(settings.file)).expanduser()
        self._form = form or ("npy" if "vector" in task.told else "jsonl")
        self._are_vectors = self._form in vectors.FORMATS
        if self._are_vectors and "vector" not in task.told:
            raise UserError(f"format={form} is for vectors, not for {task.title}: write jsonl, tsv or own")
        if self._are_vectors:
            self._file = f"vectors.{self._form}"
        else:
            self._file = self._task.predictions if form == "own" else f"predictions.{self._form}"
        apart = self._are_vectors or form == "own"
        self._errors_apart = [_ERRORS] if apart and settings.reported else []

    def _of_checkpoint(self) -> tuple[Task, int]:
        """What the checkpoint is for, and its length; raises UserError where it is no such checkpoint."""
        if self._any_checkpoint is None:
            return taught(self._checkpoint)
        return EmbedTask("embed", "embedding"), self._any_checkpoint.max_length or own_length(
            str(self._checkpoint)
        )

    @property
    def _tokenizer_path(self) -> str | None:
        settings = self._settings
        return settings.tokenizer_path if isinstance(settings, PredictSettings) else None

    @property
    def _any_checkpoint(self) -> SwapSettings | None:
        """With `task=embed`, what is changed of a checkpoint that may be of any kind."""
        settings = self._settings
        return settings.model if isinstance(settings, PredictSettings) and settings.task else None

    def run(self) -> None:
        folder = self._folder
        before = self._before()
        total = before.total if before else self._count()
        tokenizer = open_tokenizer(self._tokenizer_path, str(self._checkpoint))
        model = None if before and before.finished else self._model()  # before anything is written
        now = self._identity(tokenizer)
        with self._writing(), held(folder / ".lock", str(folder), "write folder=OTHER") as lock:
            progress = self._before()
            if progress:
                self._compare(progress.of, now)
            else:
                progress = Progress(now, total)
                self._clear()
            if not progress.finished:
                self._grow(progress, model or self._model(), tokenizer)
            result = self._finish(progress)
            lock.unlink(missing_ok=True)
        self._tell(progress, result)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"folder={self._settings.folder} cannot be written ({error.strerror or error}): write another"
                + ("" if self._anew else ", or free space: the same command goes on")
            ) from None

    def _count(self) -> int:
        """Rows of the file, those that cannot be read among them; raises UserError for none."""
        total = sum(1 for _ in self._task.read(self._settings, 1))
        if not total:
            raise UserError(f"{self._path} holds no rows below its header: bring some")
        return total

    # --- going on ------------------------------------------------------------------------------------

    def _before(self) -> Progress | None:
        """How far an earlier command came; None where there was none, or what it made is gone."""
        content = None if self._anew else read_progress(self._folder)
        if content is None:
            return None
        try:
            progress = Progress(**content)
        except TypeError:
            raise UserError(
                f"{self._folder / PROGRESS} is of another version: write folder=OTHER, or delete that folder"
            ) from None
        gone = not any(self._folder.glob(f"{self._file}*"))
        return None if progress.finished and gone else progress

    def _identity(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """All that a byte of the predictions depends on."""
        if self._anew:
            return {}
        hashes = ContentHashes(self._folder / _HASHES)
        task = json.dumps([stored(self._task), self._max_length], sort_keys=True)
        parts = (content_of_checkpoint(str(self._checkpoint), hashes), task, content_of_tokenizer(tokenizer))
        of_task = ("text", "text_pair", "label")
        return {
            "file": short(hashes.of(self._path)),
            "checkpoint": short(hashlib.sha256(json.dumps(parts).encode()).hexdigest()),
            **{
                setting.key: attrgetter(setting.key)(self._settings)
                for setting in settings_of(type(self._settings))
                if setting.role in (Role.RESULT, Role.SPEED) and setting.key not in of_task
            },
        }

    def _compare(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """Raise UserError where a folder holds predictions of another file, model or setting."""
        for name in now:
            if before.get(name) == now[name]:
                continue
            if name in ("file", "checkpoint"):
                other = "file" if name == "file" else "model"
                given = getattr(self._settings, name)
                what = f"holds predictions of another {other} than {name}={given} is now"
            else:
                old, given = (json.dumps(x).strip('"') for x in (before.get(name), now[name]))
                what = f"was begun with {name}={old}, not {given}"
            raise UserError(
                f"{self._folder} {what}: write folder=OTHER, or delete {self._folder} to begin again"
            )

    def _clear(self) -> None:
        """Remove what an earlier command left, the result first."""
        self._folder.mkdir(parents=True, exist_ok=True)
        names = [_RESULT, PROGRESS, *self._task.pictures, _ERRORS]
        for name in names:
            (self._folder / name).unlink(missing_ok=True)

    # --- rows ----------------------------------------------------------------------------------------

    def _model(self) -> PreTrainedModel:
        changes = self._any_checkpoint
        if changes is None:
            return open_model(self._checkpoint, self._task)[0]
        named = {"tokenizer_path": self._tokenizer_path, **swap(changes)}
        return Embedder.load(self._checkpoint, device="cpu", **named).model

    def _grow(self, progress: Progress, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Predict what is left."""
        settings, task = self._settings, self._task
        recipe = TrainingSettings(precision=settings.precision)
        accelerator = devices.open_accelerator(recipe)
        model.to(accelerator.device)
        autocast = devices.autocast(devices.precision(recipe, accelerator.device), accelerator.device)
        if not progress.sizes:
            own = [vectors.VECTORS, vectors.IDS] if self._are_vectors else [self._file]
            progress.sizes = dict.fromkeys([*own, _COMPARED, *self._errors_apart], 0)
            progress.width = int(model.config.hidden_size)
        files = GrowingFiles(self._folder, progress.sizes)
        rows = islice(task.read(settings, 1), progress.rows, None)
        display = ProgressDisplay(progress.total, progress.rows, shown=True, unit="row")
        shown, began, at_first = time.monotonic(), time.monotonic(), progress.rows
        with files.opened(), display:
            for chunk in chunks(rows, _CHARACTERS * settings.tokens_per_batch):
                part = Part(task, chunk)
                part.encode(tokenizer, self._max_length, self._path if settings.reported else None)
                if len(part.examples):
                    outputs = outputs_of(
                        task, model, part.encoded, settings.batch_size, int(tokenizer.pad_token_id), autocast,
                        tokens=settings.tokens_per_batch,
                    )  # fmt: skip
                    part.predict(outputs)
                texts = self._texts(part, progress)
                part.note(progress)
                files.append(texts, asdict(progress))
                now = time.monotonic()
                if display.has_bar or now - shown > _BETWEEN_LINES:
                    speed = (progress.rows - at_first) / (now - began)
                    left = (progress.total - progress.rows) / speed
                    display.reached(progress.rows, f"{speed:,.1f} rows/s", left)
                    shown = now

    def _texts(self, part: Part, progress: Progress) -> dict[str, str | bytes]:
        """What a part adds to each file."""
        if self._are_vectors:
            return self._vectors(part, progress)
        records = part.records(progress.rows)
        texts: dict[str, str | bytes]
        if self._form == "jsonl":
            texts = {self._file: json_lines(records)}
        elif self._form == "tsv":
            texts = {self._file: table(self._task, records, head=not progress.rows)}
        else:
            texts = {name: json_lines(part.errors(progress.rows)) for name in self._errors_apart}
            if len(part.examples):
                texts[self._file] = self._task.written(
                    part.examples, part.predictions, part.outputs, first=progress.examples
                )
        if part.examples.labels is not None:
            texts[_COMPARED] = json_lines(zip(part.examples.labels, part.predictions, strict=True))
        return texts

    def _vectors(self, part: Part, progress: Progress) -> dict[str, str | bytes]:
        """The same of vectors, their file begun with its header."""
        begin = b"" if progress.rows else vectors.header(progress.total, progress.width)
        texts = vectors.part_of(part.examples.ids, part.predictions if len(part.examples) else [], begin)
        return texts | {name: json_lines(part.errors(progress.rows)) for name in self._errors_apart}

    # --- the end -------------------------------------------------------------------------------------

    def _finish(self, progress: Progress) -> dict[str, Any]:
        """Name the files, and write the result; what is done already is done no more."""
        folder, task = self._folder, self._task
        if progress.finished and (folder / _RESULT).exists():
            return dict(json.loads((folder / _RESULT).read_text(encoding="utf-8")))
        result: dict[str, Any] = {
            "checkpoint": str(self._checkpoint),
            "file": self._settings.file,
            "task": task.name,
            "examples": progress.examples,
            "truncated": progress.cut / max(progress.encoded, 1),
        }
        if self._settings.reported:
            result["errors"] = progress.errors
        if progress.labelled:
            pairs = [json.loads(line) for line in written_so_far(folder, _COMPARED)]
            labels = [label for label, _ in pairs]
            predictions = [task.from_json(prediction) for _, prediction in pairs]
            result["figures"] = task.figures(labels, predictions)
            drawn = task.draw(labels, predictions, folder, task.title)
            result |= {name: value for name, value in drawn.items() if value is not None}
        if self._are_vectors:
            vectors.tell_count(folder, progress.examples, progress.width)
            result["width"] = progress.width
        if self._form == "parquet":
            vectors.write_parquet(folder, folder / self._file)
        progress.finished = True
        if not self._anew:
            note_progress(folder, asdict(progress))
        passing = (_COMPARED, *((vectors.VECTORS, vectors.IDS) if self._form == "parquet" else ()))
        for name in progress.sizes:
            if name not in passing:
                name_for_good(folder, name)
        write_atomically(folder / _RESULT, json.dumps(result, indent=2) + "\n")
        for path in (*(growing(folder, name) for name in passing), folder / _HASHES):
            path.unlink(missing_ok=True)
        if self._anew:
            (folder / PROGRESS).unlink(missing_ok=True)
        return result

    def _tell(self, progress: Progress, result: Mapping[str, Any]) -> None:
        cut = f"{result['truncated']:.1%} cut to {self._max_length} tokens"
        print(f"{self._settings.file}: {progress.examples:,} examples, {cut}")
        for name, value in result.get("figures", {}).items():
            print(f"  {name} {value:.4f}")
        print(self._folder / self._file)
        if progress.errors:
            first = "".join(f"\n  {error}" for error in progress.first_errors)
            more = f", the first {SHOWN}" if progress.errors > SHOWN else ""
            print(
                f"{progress.errors:,} of {progress.rows:,} rows could not be read{more}:{first}",
                file=sys.stderr,
            )


def open_model(folder: Path, task: Task) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a folder; raises UserError where the weights cannot be loaded."""
    model, _ = load_model(task.head, str(folder), wrong=f"checkpoint={folder}", fix=": train it again")
    if model.config.num_labels != task.num_labels:
        raise UserError(
            f"checkpoint={folder} has {model.config.num_labels} labels, its task.json {task.num_labels}"
        )
    return model.eval(), open_tokenizer(None, str(folder))
