"""`predict`: a fine-tuned model on a file of any size; `evaluate`, the same on one with labels.

    rows of the file → chunks → batches of like length → outputs → lines in the rows' order → progress.json

A chunk holds so many rows or characters, whichever comes first, and no more is in memory. Chunks and batches
depend on file and settings alone: what was killed goes on, and its file is that of an undisturbed run.
Processes of a launcher take a chunk each in turn, and the main one writes: the file is that of one process.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from itertools import accumulate, islice
from operator import attrgetter
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nystromformer.errors import UserError
from nystromformer.export.onnx_file import ModelOfFile
from nystromformer.files import ContentHashes, held, write_atomically
from nystromformer.heap import keep_freed_memory
from nystromformer.model.source import content_of_checkpoint, open_tokenizer
from nystromformer.settings import TrainingSettings
from nystromformer.settings.finetune import EvaluateSettings, PredictSettings
from nystromformer.settings.retrieval import EvaluateCommandSettings
from nystromformer.settings.schema import Role, settings_of
from nystromformer.tasks import vectors
from nystromformer.tasks.embedding import Embedder, own_length, swap
from nystromformer.tasks.export import open_model, taught, to_device
from nystromformer.tasks.growing import (
    PROGRESS,
    GrowingFiles,
    growing,
    name_for_good,
    note_progress,
    read_progress,
    written_so_far,
)
from nystromformer.tasks.identity import content_of_tokenizer, short
from nystromformer.tasks.kinds.embed import EmbedTask
from nystromformer.tasks.parts import SHOWN, Part, Progress, chunks, json_lines, table
from nystromformer.tasks.plots import RELIABILITY, draw_reliability
from nystromformer.tasks.retrieval import evaluate_collection
from nystromformer.tasks.row_files import Fault
from nystromformer.tasks.task import Found, Task, stored
from nystromformer.tasks.training import outputs_of
from nystromformer.training import devices
from nystromformer.training.display import ProgressDisplay
from nystromformer.training.together import Together, joined

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
    keep_freed_memory()
    if not Path(str(settings.file)).expanduser().is_dir():
        _share(settings)
    elif int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            f"file={settings.file}: a folder is ranked in one process: start it without a launcher"
        )
    else:
        evaluate_collection(settings)


def predict(settings: PredictSettings) -> None:
    """Predict every row, or go on where that was stopped; figures too where the file has labels.

    Raises:
        UserError: as `evaluate`; or the folder is of other predictions, or another process has it.
    """
    keep_freed_memory()
    _share(settings)


def _share(settings: EvaluateSettings) -> None:
    """With the processes of a launcher, where there is one."""
    accelerator = None
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        accelerator = devices.open_accelerator(TrainingSettings(precision=settings.precision))
    with joined(accelerator) as together:
        _Prediction(settings, together).run()


class _Prediction:
    """A file, a model, and the folder where predictions go."""

    def __init__(self, settings: EvaluateSettings, together: Together) -> None:
        self._settings = settings
        self._together = together
        self._anew = not isinstance(settings, PredictSettings)
        asked = settings if isinstance(settings, PredictSettings) else PredictSettings(format="own")
        self._tokenizer_path = asked.tokenizer_path
        self._any_checkpoint = asked.model if asked.task else None
        """With `task=embed`, what is changed of a checkpoint that may be of any kind."""
        self._onnx = Path(settings.onnx).expanduser() if settings.onnx else None
        self._folder = Path(settings.folder).expanduser()
        self._checkpoint = Path(str(settings.checkpoint)).expanduser()
        self._path = Path(str(settings.file)).expanduser()
        self._task, self._max_length, self._tokenizer = together.on_all(self._of_checkpoint)
        self._form = asked.format or ("npy" if "vector" in self._task.told else "jsonl")
        self._are_vectors = self._form in vectors.FORMATS
        if self._are_vectors and "vector" not in self._task.told:
            raise UserError(
                f"format={self._form} is for vectors, not for {self._task.title}: write jsonl, tsv or own"
            )
        told = self._task.predictions if self._form == "own" else f"predictions.{self._form}"
        self._file = f"vectors.{self._form}" if self._are_vectors else told
        if self._onnx and "vector" in self._task.told:
            raise UserError(f"onnx={settings.onnx} is for predictions, not for vectors: leave it out")
        if self._onnx and not self._onnx.is_file():
            raise UserError(f"onnx={settings.onnx} is no file: write one of `export`, or leave it out")
        apart = self._are_vectors or self._form == "own"
        self._errors_apart = [_ERRORS] if apart and settings.reported else []

    def _of_checkpoint(self) -> tuple[Task, int, PreTrainedTokenizerBase]:
        """What the checkpoint is for, its length and tokenizer; raises UserError where it is no such one."""
        path, any_checkpoint = str(self._checkpoint), self._any_checkpoint
        task: Task
        if any_checkpoint is None:
            task, max_length = taught(self._checkpoint)
        else:
            task, max_length = EmbedTask("embed", "embedding"), any_checkpoint.max_length or own_length(path)
        return task.of_file(self._settings), max_length, open_tokenizer(self._tokenizer_path, path)

    def run(self) -> None:
        together = self._together
        total, finished = together.on_main(self._look)
        model = None if finished else together.on_all(self._model)  # before anything is written
        with ExitStack() as lock:
            progress = together.on_main(partial(self._begin, lock, total))
            if not progress.finished:
                progress = self._grow(progress, model or together.on_all(self._model))
            together.on_main(partial(self._conclude, progress))

    def _look(self) -> tuple[int, bool]:
        """How many rows there are, and whether all are predicted."""
        if before := self._before():
            return before.total, before.finished
        total = sum(1 for _ in self._task.read(self._settings))
        if not total:
            raise UserError(f"{self._path} holds no rows below its header: bring some")
        return total, False

    def _begin(self, lock: ExitStack, total: int) -> Progress:
        """Take the folder, and look how far it is."""
        now = self._identity()
        with self._writing():
            folder = held(self._folder / ".lock", str(self._folder), "write folder=OTHER")
            path = lock.enter_context(folder)
            lock.callback(path.unlink, missing_ok=True)
            progress = self._before()
            if progress:
                self._compare(progress.of, now)
            else:
                progress = Progress(of=now, total=total)
                self._clear()
            if not progress.sizes:
                own = [vectors.VECTORS, vectors.IDS] if self._are_vectors else [self._file]
                progress.sizes = dict.fromkeys([*own, _COMPARED, *self._errors_apart], 0)
        return progress

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"folder={self._settings.folder} cannot be written ({error.strerror or error}): write another"
                + ("" if self._anew else ", or free space: the same command goes on")
            ) from None

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

    def _identity(self) -> dict[str, Any]:
        """All that a byte of the predictions depends on."""
        if self._anew:
            return {}
        hashes = ContentHashes(self._folder / _HASHES)
        task = json.dumps([stored(self._task), self._max_length], sort_keys=True)
        weights = content_of_checkpoint(str(self._checkpoint), hashes)
        parts = (weights, task, content_of_tokenizer(self._tokenizer))
        of_task = ("text", "text_pair", "label")
        return {
            "file": short(hashes.of(self._path)),
            "checkpoint": short(hashlib.sha256(json.dumps(parts).encode()).hexdigest()),
            **({"onnx": short(hashes.of(self._onnx))} if self._onnx else {}),
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
            if name in ("file", "checkpoint", "onnx"):
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
        for name in (_RESULT, PROGRESS, *self._task.pictures, RELIABILITY, _ERRORS):
            (self._folder / name).unlink(missing_ok=True)

    # --- rows ----------------------------------------------------------------------------------------

    def _model(self) -> PreTrainedModel:
        changes = self._any_checkpoint
        if changes is None:
            model = open_model(self._checkpoint, self._task)[0]
            # Called alike, and nothing else is asked of it here.
            return cast(PreTrainedModel, ModelOfFile(self._onnx, model.config)) if self._onnx else model
        named = {"tokenizer_path": self._tokenizer_path, **swap(changes)}
        return Embedder.load(self._checkpoint, device="cpu", **named).model

    def _grow(self, progress: Progress, model: PreTrainedModel) -> Progress:
        """Predict what is left: every process reads all rows, and answers one chunk of each turn."""
        settings, together = self._settings, self._together
        rows = islice(self._task.read(settings), progress.rows, None)
        waiting = chunks(rows, _CHARACTERS * settings.tokens_per_batch)
        answer, progress.width = self._answering(model), int(model.config.hidden_size)
        files = GrowingFiles(self._folder, progress.sizes)
        display = ProgressDisplay(progress.total, progress.rows, shown=together.rank == 0, unit="row")
        shown, began, at_first = time.monotonic(), time.monotonic(), progress.rows

        def write(turn: list[tuple[Progress, dict[str, str | bytes]]]) -> None:
            with self._writing():
                for reached, texts in turn:
                    files.append(texts, asdict(reached))

        with ExitStack() as opened:
            together.on_main(partial(self._open, files, opened))
            opened.enter_context(display)
            while turn := together.on_all(lambda: list(islice(waiting, together.count))):
                mine = turn[together.rank] if together.rank < len(turn) else []
                part = together.on_all(partial(answer, mine))
                counts = together.gathered(part.counts)[: len(turn)]
                reached = list(accumulate(counts, Progress.after, initial=progress))
                texts = together.gathered(self._texts(part, reached[min(together.rank, len(turn))]))
                together.on_main(partial(write, list(zip(reached[1:], texts, strict=False))))
                progress = reached[-1]
                now = time.monotonic()
                if display.has_bar or now - shown > _BETWEEN_LINES:
                    speed = (progress.rows - at_first) / (now - began)
                    left = (progress.total - progress.rows) / speed
                    display.reached(progress.rows, f"{speed:,.1f} rows/s", left)
                    shown = now
        return progress

    def _open(self, files: GrowingFiles, stack: ExitStack) -> None:
        with self._writing():
            stack.enter_context(files.opened())

    def _answering(self, model: PreTrainedModel) -> Callable[[list[Found | Fault]], Part]:
        """What answers a chunk: the model on its device."""
        settings, task = self._settings, self._task
        autocast = to_device(model, settings.precision)
        pad, path = int(self._tokenizer.pad_token_id), self._path if settings.reported else None

        def answer(chunk: list[Found | Fault]) -> Part:
            part = Part(task, chunk)
            part.encode(self._tokenizer, self._max_length, path)
            if len(part.examples):
                part.predict(
                    outputs_of(
                        task, model, part.encoded, settings.batch_size, pad, autocast,
                        tokens=settings.tokens_per_batch,
                    )
                )  # fmt: skip
            return part

        return answer

    def _texts(self, part: Part, progress: Progress) -> dict[str, str | bytes]:
        """What a part adds to each file."""
        texts: dict[str, str | bytes]
        texts = {name: json_lines(part.errors(progress.rows)) for name in self._errors_apart}
        if self._are_vectors:
            begin = b"" if progress.rows else vectors.header(progress.total, progress.width)
            texts |= vectors.part_of(part.examples.ids, part.predictions, begin)
        elif self._form == "jsonl":
            texts[self._file] = json_lines(part.records(progress.rows))
        elif self._form == "tsv":
            texts[self._file] = table(self._task, part.records(progress.rows), head=not progress.rows)
        elif len(part.examples):
            texts[self._file] = self._task.written(part, first=progress.examples)
        if part.examples.labels is not None:
            texts[_COMPARED] = json_lines(zip(part.examples.labels, part.predictions, strict=True))
        return texts

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
            if progress.reliability and progress.weighed == progress.examples:
                place = folder / RELIABILITY
                drawn["reliability"] = draw_reliability(progress.reliability, place, task.title)
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

    def _conclude(self, progress: Progress) -> None:
        with self._writing():
            result = self._finish(progress)
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
