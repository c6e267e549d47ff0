"""`predict` that is killed goes on to the same files, and its memory does not grow with the file."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nystromformer.cli import main
from nystromformer.tasks import growing, parts, predict
from tests.tasks.conftest import FILLERS
from tests.tasks.test_predict import CLASSES, KINDS, model_of, words


class Killed(BaseException):
    """As a kill: nothing on the way out may mend anything, but `finally` of locks."""


def twenty_rows(checkpoint: Path, tmp_path: Path, kind: str = "classes") -> tuple[Path, Path, list[str]]:
    task, row, label = KINDS[kind]
    model = tmp_path / "model"
    if not model.exists():
        model_of(task, checkpoint, model)
    file = tmp_path / "rows.jsonl"
    rows = [json.dumps(row(number) | label) if number % 6 else "no JSON" for number in range(20)]
    file.write_text("\n".join(rows) + "\n")
    return model, file, ["predict", f"checkpoint={model}", f"file={file}", f"folder={tmp_path / 'out'}"]


def kill_after(monkeypatch, writes: int) -> None:
    """Die at a write or a note, half of it done."""
    left = [writes]
    fsync, note, rename = os.fsync, growing.write_atomically, Path.replace

    def counted() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed

    def dying_fsync(number: int) -> None:
        if left[0] == 0:
            size = os.fstat(number).st_size
            os.ftruncate(number, max(size - 11, 0))
        counted()
        fsync(number)

    def dying_note(path: Path, text: str) -> None:
        counted()
        note(path, text)

    def dying_replace(self: Path, target: Path) -> Path:
        if self.name.endswith(".part"):
            counted()
        return rename(self, target)

    monkeypatch.setattr(growing.os, "fsync", dying_fsync)
    monkeypatch.setattr(growing, "write_atomically", dying_note)
    monkeypatch.setattr(predict, "write_atomically", dying_note)
    monkeypatch.setattr(Path, "replace", dying_replace)


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        ("classes", "jsonl"),
        ("answers", "tsv"),
        ("multi_label", "own"),
        ("embed", "npy"),
        ("embed", "parquet"),
    ],
)
def test_killed_at_every_write_it_becomes_the_same_files(
    kind, form, checkpoint, tmp_path, small_chunks, monkeypatch, capsys
):
    _, _, command = twenty_rows(checkpoint, tmp_path, kind)
    command.append(f"format={form}")
    undisturbed = tmp_path / "undisturbed"
    assert main([*command, f"folder={undisturbed}"]) == 0
    whole = {path.name: path.read_bytes() for path in undisturbed.iterdir()}
    kills = 0
    for writes in [*range(0, 30), 10**6]:
        kill_after(monkeypatch, writes)
        try:
            assert main(command) == 0
            monkeypatch.undo()
            monkeypatch.setattr(parts, "MOST_ROWS", 7)
            break
        except Killed:
            kills += 1
            monkeypatch.undo()
            monkeypatch.setattr(parts, "MOST_ROWS", 7)
    assert kills >= 3
    left = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert left.keys() == whole.keys()
    assert {name: left[name] for name in whole if not name.endswith(".json")} == {
        name: whole[name] for name in whole if not name.endswith(".json")
    }
    assert json.loads(left["result.json"]) == json.loads(whole["result.json"])


@pytest.mark.slow
def test_killed_at_random_moments_20_000_rows_become_the_same_file(checkpoint, tmp_path):
    """SIGKILL from outside at random moments, and from within in the middle of writes."""
    model = model_of(CLASSES, checkpoint, tmp_path / "model")
    file = tmp_path / "rows.jsonl"
    draw = random.Random(1)
    rows = [json.dumps({"text": words(n), "label": "ab"[n % 2]}) if n % 97 else "{" for n in range(20_000)]
    file.write_text("\n".join(rows) + "\n")
    command = ["predict", f"checkpoint={model}", f"file={file}"]
    assert main([*command, f"folder={tmp_path / 'undisturbed'}"]) == 0
    whole = (tmp_path / "undisturbed/predictions.jsonl").read_bytes()
    assert whole.count(b"\n") == 20_000
    script = """
import os, sys
from nystromformer.cli import main
from nystromformer.tasks import growing
left = [int(sys.argv[1])]
fsync = os.fsync
def dying(number):
    if left[0] == 0:
        os.ftruncate(number, os.fstat(number).st_size - 17)
        os.kill(os.getpid(), 9)
    left[0] -= 1
    fsync(number)
growing.os.fsync = dying
sys.exit(main(sys.argv[2:]))
"""
    kills = reached = 0
    place = tmp_path / "out"
    while True:
        inside = kills % 2
        writes = draw.randrange(5, 12) if inside else 10**9
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(writes), *command, f"folder={place}"],
            stdout=subprocess.DEVNULL,
        )
        if not inside and kills < 8:
            began = time.monotonic()
            while process.poll() is None and time.monotonic() - began < 120:
                progress = growing.read_progress(place) if place.exists() else None
                if progress and progress["rows"] > reached:
                    time.sleep(draw.random())
                    break
                time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
        code = process.wait(timeout=280)
        progress = growing.read_progress(place)
        reached = progress["rows"] if progress else 0
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
    assert kills >= 4
    assert (place / "predictions.jsonl").read_bytes() == whole
    one, other = (json.loads((p / "result.json").read_text()) for p in (place, tmp_path / "undisturbed"))
    assert one == other


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(checkpoint, tmp_path):
    model = model_of(CLASSES, checkpoint, tmp_path / "model")
    peaks = []
    for count in (2_000, 20_000):
        file = tmp_path / f"{count}.jsonl"
        text = " ".join(FILLERS * 12)
        file.write_text(
            "".join(json.dumps({"text": f"{text} {n}"}) + "\n" if n % 3 else "{\n" for n in range(count))
        )
        script = (
            "import resource, sys; from nystromformer.cli import main; code = main(sys.argv[1:]);"
            "print('PEAK', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(code)"
        )
        command = ["predict", f"checkpoint={model}", f"file={file}", f"folder={tmp_path / str(count)}"]
        done = subprocess.run(
            [sys.executable, "-c", script, *command], capture_output=True, text=True, check=True
        )
        peaks.append(int(done.stdout.rsplit("PEAK", 1)[1]))
    assert peaks[1] < 1.05 * peaks[0], peaks


def test_a_file_that_became_shorter_is_told(checkpoint, tmp_path, capsys, small_chunks, monkeypatch):
    model, file, command = twenty_rows(checkpoint, tmp_path)
    kill_after(monkeypatch, 9)
    with pytest.raises(Killed):
        main(command)
    monkeypatch.undo()
    (tmp_path / "out/predictions.jsonl.part").write_text("")
    assert main(command) == 2
    assert "is shorter than was noted in progress.json: delete" in capsys.readouterr().err
