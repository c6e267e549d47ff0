"""Two runs of one name at once: the second ends in one line, and one that died blocks nobody."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest

from nystromformer.cli import main
from nystromformer.data.plan import plan
from nystromformer.settings import PretrainSettings
from nystromformer.settings.compose import compose
from nystromformer.training.run_folder import RunFolder

from .runs import COMMAND, wait_for


@pytest.fixture(scope="module")
def words(corpus, prepared, tmp_path_factory) -> list[str]:
    small = ["debug=smoke", "data=text", f"data.files=[{corpus}]", "data.max_documents=null"]
    small += ["data.workers=1", f"data.folder={prepared}", "tokenizer.vocab_size=400"]
    return [*small, f"runs_folder={tmp_path_factory.mktemp('held')}", "training.steps=100000"]


@pytest.fixture(scope="module")
def running(words):
    """A run that is under way in a process of its own."""
    settings = compose("pretrain", words)
    assert isinstance(settings, PretrainSettings)
    folder = RunFolder(settings)
    process = subprocess.Popen([*COMMAND, *words], stdout=subprocess.DEVNULL)
    wait_for(folder.metrics, process)
    yield process, folder
    process.kill()
    process.wait()


def test_refused_main_process_ends_all_processes(running, words):
    """Each by itself, without a launcher that would end the others."""
    process, folder = running
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    ranks = [
        subprocess.Popen(
            [*COMMAND, *words],
            env={**environment, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    told = [rank.communicate(timeout=200)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2, 2]
    assert f"{folder.path} is in use by process {process.pid} on " in told[0]
    assert "nystromformer: " not in told[1]
    assert not any("Traceback" in text for text in told)
    assert process.poll() is None


def test_second_run_of_a_name_is_told_who_has_it_and_one_that_died_blocks_nobody(running, words, capsys):
    process, folder = running
    assert main(["pretrain", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{folder.path} is in use by process {process.pid} on " in line
    assert " since 20" in line
    assert line.endswith("write name=OTHER for another run")
    assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with folder.held():  # what a run does first; `test_kills` goes on from there
        pass
    assert not list(folder.path.glob("*.holder"))


def test_run_that_never_began_leaves_no_folder(overrides, tmp_path, capsys):
    kept = [word for word in overrides if not word.startswith("data.files")]
    assert main(["pretrain", *kept, f"data.files=[{tmp_path}/absent.txt]"]) == 2
    assert not (tmp_path / "runs/smoke").exists()


HOLD = """
import sys, time
from pathlib import Path
from nystromformer.data import storage
with storage.locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def test_second_preparation_says_for_whom_it_waits_and_takes_its_turn(overrides, tmp_path, capsys):
    words = [word for word in overrides if not word.startswith("data.folder")]
    words += [f"data.folder={tmp_path / 'new'}"]
    settings = compose("prepare", words)
    assert isinstance(settings, PretrainSettings)
    folder = plan(settings.preparation).folder
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), "3"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    assert main(["prepare", *words]) == 0
    assert process.wait() == 0
    waited = [line for line in capsys.readouterr().err.splitlines() if "in use" in line]
    assert len(waited) == 1
    assert f"{folder} is in use by process {process.pid} on " in waited[0]
    assert waited[0].endswith("waiting for it to end")
    assert (folder / "manifest.json").exists()
