"""`predict` on several processes: they share the work, and the file is that of one process, byte for byte."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Lock
from typing import Any

import pytest
from transformers import PreTrainedModel

from nystromformer.cli import main
from nystromformer.errors import UserError
from nystromformer.settings.compose import compose
from nystromformer.settings.finetune import PredictSettings
from nystromformer.tasks import growing, parts, predict
from nystromformer.training.together import Together, _outcome

from ..training.runs import on_processes
from .test_predict import KINDS, model_of
from .test_predict_kills import twenty_rows


class OnThread(Together):
    """One of several threads that stand in for processes: they meet in `gathered`."""

    def __init__(self, rank: int, values: list[Any], barrier: Barrier) -> None:
        self.rank, self.count, self._group = rank, len(values), object()
        self._values, self._barrier = values, barrier

    def gathered(self, value: Any) -> list[Any]:
        self._values[self.rank] = pickle.dumps(value)
        self._barrier.wait()
        found = [pickle.loads(content) for content in self._values]
        self._barrier.wait()
        return found

    def on_main(self, work: Callable[[], Any]) -> Any:
        value, error = self.gathered(_outcome(work) if self.rank == 0 else None)[0]
        if error:
            raise error
        return value


def on_threads(count: int, words: list[str]) -> list[BaseException | None]:
    """What each of them raised."""
    settings = compose("predict", words[1:])
    assert isinstance(settings, PredictSettings)
    values, barrier = [None] * count, Barrier(count, timeout=60)

    def work(rank: int) -> None:
        together = OnThread(rank, values, barrier)
        predict._Prediction(settings, together).run()

    with ThreadPoolExecutor(count) as pool:
        return [future.exception() for future in [pool.submit(work, rank) for rank in range(count)]]


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "progress.json"}


@pytest.fixture(autouse=True)
def models_opened_one_at_a_time(monkeypatch):
    """Processes are threads here, and transformers changes what all of them share while it opens a model: two
    at once would leave every later model of this process with untied embeddings."""
    lock, opened = Lock(), PreTrainedModel.from_pretrained.__func__

    def one_at_a_time(cls, *given, **named):
        with lock:
            return opened(cls, *given, **named)

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(one_at_a_time))


@pytest.fixture(autouse=True)
def chunks_of_three(monkeypatch):
    monkeypatch.setattr(parts, "MOST_ROWS", 3)


@pytest.mark.parametrize(("kind", "form"), [("classes", "own"), ("tokens", "tsv"), ("answers", "jsonl")])
@pytest.mark.parametrize("count", [2, 5])
def test_any_number_of_processes_writes_the_files_of_one(kind, form, count, checkpoint, tmp_path):
    _, _, command = twenty_rows(checkpoint, tmp_path, kind)  # of which some cannot be read: seven chunks
    command.append(f"format={form}")
    assert main([*command, f"folder={tmp_path / 'alone'}"]) == 0
    assert on_threads(count, command) == [None] * count
    alone, together = files_in(tmp_path / "alone"), files_in(tmp_path / "out")
    assert together == alone
    assert ".lock" not in together


def test_what_some_processes_began_others_go_on_with(checkpoint, tmp_path, monkeypatch):
    _, _, command = twenty_rows(checkpoint, tmp_path)
    assert main([*command, f"folder={tmp_path / 'alone'}"]) == 0
    append, appended = growing.GrowingFiles.append, []

    def full_disk(*arguments):
        if len(appended) == 3:  # within the second turn
            raise OSError(28, "No space left on device")
        appended.append(append(*arguments))

    monkeypatch.setattr(growing.GrowingFiles, "append", full_disk)
    errors = on_threads(2, command)
    assert ["(No space left on device): write another, or free space" in str(error) for error in errors] == [
        True,
        True,
    ]
    assert (growing.read_progress(tmp_path / "out") or {})["rows"] == 9
    monkeypatch.setattr(growing.GrowingFiles, "append", append)
    assert on_threads(3, command) == [None] * 3
    assert files_in(tmp_path / "out") == files_in(tmp_path / "alone")


def test_a_row_that_one_process_cannot_use_ends_all_of_them(checkpoint, tmp_path):
    task, row, _ = KINDS["choice"]
    model = model_of(task, checkpoint, tmp_path / "model")
    rows = [row(number) for number in range(9)]
    rows[4]["question"] = "film " * 90
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    command = ["predict", f"checkpoint={model}", f"file={file}", f"folder={tmp_path / 'out'}"]
    errors = on_threads(3, [*command, "malformed_rows=stop"])
    assert [type(error) for error in errors] == [UserError] * 3
    assert len(set(map(str, errors))) == 1
    assert str(errors[0]).startswith("example 4: its question and a choice have")


def test_a_model_that_cannot_be_opened_leaves_no_folder(checkpoint, tmp_path):
    model, _, command = twenty_rows(checkpoint, tmp_path)
    (model / "model.safetensors").write_bytes(b"damaged")
    errors = on_threads(2, command)
    assert ["cannot load the weights" in str(error) for error in errors] == [True, True]
    assert not (tmp_path / "out/progress.json").exists()


@pytest.mark.parametrize("command", ["prepare", "convert", "export", "benchmark", "reproduce"])
def test_a_command_for_one_process_says_so_to_a_launcher(command, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    needed = {
        "convert": ["source=a", "target=b"],
        "export": ["checkpoint=a", "target=b"],
        "reproduce": ["table=efficiency"],
    }
    assert main([command, *needed.get(command, [])]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{command} works in one process, and a launcher started 2: start it without" in line


@pytest.mark.slow
def test_two_processes_of_a_launcher_write_the_file_of_one(checkpoint, tmp_path, monkeypatch):
    monkeypatch.undo()
    model, _, command = twenty_rows(checkpoint, tmp_path)
    file = tmp_path / "many.jsonl"
    file.write_text((tmp_path / "rows.jsonl").read_text() * 300)
    words = [f"checkpoint={model}", f"file={file}", "tokens_per_batch=256"]
    assert main(["predict", *words, f"folder={tmp_path / 'alone'}"]) == 0
    printed = on_processes(2, [*words, f"folder={tmp_path / 'out'}"], "predict")
    assert printed.count("many.jsonl: 4,800 examples") == 1
    assert files_in(tmp_path / "out") == files_in(tmp_path / "alone")
    printed = on_processes(
        2, [*words, f"folder={tmp_path / 'evaluated'}", "malformed_rows=report"], "evaluate"
    )
    assert printed.count("accuracy") == 1
