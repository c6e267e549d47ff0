"""Two runs of one name at once: the second ends in one line, and one that died blocks nobody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from nystromformer.cli import main

from .runs import COMMAND, events, on_processes, wait_for

LONG = ["training.steps=100000", "training.checkpoint_every=5", "training.log_every=1"]


@pytest.fixture
def running(overrides, tmp_path):
    """A run that is under way in a process of its own."""
    process = subprocess.Popen([*COMMAND, *overrides, *LONG], stdout=subprocess.DEVNULL)
    wait_for(tmp_path / "runs/smoke/checkpoints/latest", process)
    yield process
    process.kill()
    process.wait()


def told(capsys) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_second_run_of_a_name_is_told_who_has_it_and_one_that_died_blocks_nobody(
    running, overrides, tmp_path, capsys
):
    started = time.monotonic()
    assert main(["pretrain", *overrides, *LONG]) == 2
    line = told(capsys)
    assert f"runs/smoke is in use by process {running.pid} on " in line
    assert " since 20" in line
    assert line.endswith("write name=OTHER for another run")
    assert time.monotonic() - started < 60
    assert running.poll() is None
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    reached = events(tmp_path / "runs/smoke", "train")[-1]["step"]
    steps = ["training.steps=100000", "training.log_every=1", "training.checkpoint_every=5"]
    process = subprocess.Popen([*COMMAND, *overrides, *steps], stdout=subprocess.DEVNULL)
    while events(tmp_path / "runs/smoke", "train")[-1]["step"] <= reached:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    assert not list((tmp_path / "runs/smoke").glob("*.holder"))


def test_refused_main_process_ends_all_processes(running, overrides):
    with pytest.raises(AssertionError) as ended:
        on_processes(2, [*overrides, *LONG])
    assert f"is in use by process {running.pid}" in str(ended.value)
    assert "Traceback" not in str(ended.value).split("torch/distributed")[0].split("ChildFailedError")[0]
    assert running.poll() is None


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
    from nystromformer.data.plan import plan
    from nystromformer.settings.compose import compose

    words = [word for word in overrides if not word.startswith("data.folder")]
    words += [f"data.folder={tmp_path / 'new'}"]
    folder = plan(compose("prepare", words).preparation).folder
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
