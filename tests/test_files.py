"""Files: whole or absent, held by one process, told apart by what they hold."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nystromformer import files
from nystromformer.files import ContentHashes, Held, held, sha256_of_file

HOLD = """
import sys, time
from pathlib import Path
from nystromformer.files import held
with held(Path(sys.argv[1]), "runs/a", "write name=OTHER"):
    print("held", flush=True)
    time.sleep(120)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "a.lock")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_second_process_is_told_who_holds_it_and_since_when(tmp_path, holder):
    with pytest.raises(Held) as told, held(tmp_path / "a.lock", "runs/a", "write name=OTHER"):
        pass
    message = str(told.value)
    assert message.startswith(f"runs/a is in use by process {holder.pid} on ")
    assert " since 20" in message
    assert message.endswith("or write name=OTHER")
    assert "\n" not in message


def test_holder_that_was_killed_blocks_nobody(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with held(tmp_path / "a.lock", "runs/a", "write name=OTHER"):
        pass
    assert not list(tmp_path.glob("*.holder"))


def test_copied_and_touched_file_is_the_same_and_read_once(tmp_path, monkeypatch):
    first, memory = tmp_path / "a.txt", tmp_path / "hashes.json"
    first.write_text("one text\n")
    digest = ContentHashes(memory).of(first)
    assert digest == sha256_of_file(first)
    copy = Path(shutil.copy(first, tmp_path / "b.txt"))
    os.utime(first, (1, 1))
    assert ContentHashes(memory).of(first) == digest
    assert ContentHashes(memory).of(copy) == digest
    monkeypatch.setattr(files, "sha256_of_file", lambda path: pytest.fail("was read again"))
    assert ContentHashes(memory).of(copy) == digest


def test_changed_file_of_the_same_size_is_another(tmp_path):
    file, memory = tmp_path / "a.txt", tmp_path / "hashes.json"
    file.write_text("good")
    before = ContentHashes(memory).of(file)
    file.write_text("evil")
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    assert ContentHashes(memory).of(file) != before


def test_damaged_memory_costs_the_reading_alone(tmp_path):
    file, memory = tmp_path / "a.txt", tmp_path / "hashes.json"
    file.write_text("text")
    memory.write_text("[1, ")
    assert ContentHashes(memory).of(file) == sha256_of_file(file)


def test_a_folder_takes_its_place_whole_or_not_at_all(tmp_path):
    place = tmp_path / "result"
    with files.replacing_folder(place) as beside:
        (beside / "a").write_text("one")
        assert not place.exists()
    with pytest.raises(FileNotFoundError), files.replacing_folder(place) as beside:
        (beside / "nowhere" / "a").write_text("two")
    assert (place / "a").read_text() == "one"
    assert list(tmp_path.iterdir()) == [place]
    with files.replacing_folder(place) as beside:
        (beside / "b").write_text("three")
    assert [path.name for path in place.iterdir()] == ["b"]
    assert list(tmp_path.iterdir()) == [place]


def test_a_folder_that_a_kill_left_out_of_its_place_is_back(tmp_path):
    before, beside = tmp_path / ".result.before", tmp_path / ".result.unfinished"
    before.mkdir()
    (before / "a").write_text("one")
    beside.mkdir()
    files.recover_folder(tmp_path / "result")
    assert (tmp_path / "result/a").read_text() == "one"
    assert list(tmp_path.iterdir()) == [tmp_path / "result"]
