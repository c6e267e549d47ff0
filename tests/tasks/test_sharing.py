"""Several commands of one name: one trains a seed, nothing shared is half, a dead holder blocks nobody."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from nystromformer.errors import UserError
from nystromformer.files import Held, held
from nystromformer.settings.compose import compose
from nystromformer.tasks.finetune import finetune
from nystromformer.tasks.identity import Contents, OtherResults, identity, note
from nystromformer.tasks.jobs import Job, forget_unstarted, holder_of, jobs_of, settle, taken
from nystromformer.tasks.results import keep_best
from tests.tasks.test_stale import rows_of

HOLDER = """
import sys, time
from pathlib import Path
from nystromformer.files import held
with held(Path(sys.argv[1]), "a seed", "wait"):
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def another_process_holding(lock: Path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def settings(checkpoint, tmp_path):
    (tmp_path / "a.csv").write_text(rows_of(16))
    return compose("finetune", [
        "task=custom", f"data.train={tmp_path / 'a.csv'}", f"checkpoint={checkpoint}", "name=a",
        f"runs_folder={tmp_path / 'runs'}", "task.epochs=1", "training.precision=float32",
    ])  # fmt: skip


def the_job(settings) -> Job:
    (job,) = jobs_of(settings, settings.task)
    return job


class Setup:
    """As much of a TaskSetup as `settle` reads."""

    splits = None

    def __init__(self, settings, contents: Contents) -> None:
        self.settings, self.contents = settings, contents


def test_the_holder_of_a_seed_is_named_and_a_dead_one_blocks_nobody(settings, capsys):
    job = the_job(settings)
    with another_process_holding(job.lock) as process:
        finetune(settings)
        printed = capsys.readouterr().out
        assert re.search(rf"{job.label} is in use by process {process.pid} on \S+ since 20\d\d-", printed)
        assert printed.count(str(process.pid)) == 1
        assert "1 seeds are still trained by another command" in printed
        assert not job.finished
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        finetune(settings)
    assert job.finished
    assert not list(job.folder.parent.glob("*.lock*"))


def test_a_seed_is_taken_once(settings):
    job = the_job(settings)
    with taken(settings, job) as mine, taken(settings, job) as again:
        assert (mine, again) == (True, False)
        assert f"process {os.getpid()}" in holder_of(job)
    with taken(settings, job) as mine:
        assert mine
        assert holder_of(replace(job, seed=1)) is None


def test_looking_takes_nothing(settings):
    job = the_job(settings)
    assert holder_of(job) is None
    with ExitStack() as mine:
        assert holder_of(job, mine) is None
        assert holder_of(job) is not None


def test_the_second_command_compares_before_the_first_has_any_result(settings):
    """Both hold a seed and neither has made a step: the first has noted its data, the second reads others."""
    first, second = the_job(settings), replace(the_job(settings), seed=1)
    with taken(settings, first):
        settle(Setup(settings, {"train": "16 examples of yesterday"}), settings.task, first)
        with taken(settings, second), pytest.raises(OtherResults, match="16 examples of yesterday then"):
            settle(Setup(settings, {"train": "16 examples of today"}), settings.task, second)
        other = replace(settings, model=replace(settings.model, attention="softmax"))
        with taken(settings, second), pytest.raises(OtherResults, match=r"now model\.attention=softmax"):
            settle(Setup(other, {"train": "16 examples of yesterday"}), settings.task, second)
    with taken(settings, second):  # the first ended and left nothing: what it noted binds nobody
        settle(Setup(settings, {"train": "16 examples of today"}), settings.task, second)
    content = json.loads((second.task_folder / "settings.json").read_text())
    assert content["contents"] == {"train": "16 examples of today"}


def test_results_that_say_no_longer_what_they_are_of_are_not_gone_on_with(settings):
    job = the_job(settings)
    with taken(settings, job):
        settle(Setup(settings, {"train": "16 examples"}), settings.task, job)
        job.folder.mkdir(parents=True, exist_ok=True)
        (job.folder / "metrics.jsonl").write_text("")
        settle(Setup(settings, {"train": "16 examples"}), settings.task, job)
        (job.task_folder / "settings.json").unlink()
        with pytest.raises(UserError, match=r"no settings\.json that says what they are of: bring it back"):
            settle(Setup(settings, {"train": "16 examples"}), settings.task, job)


def test_a_mistaken_command_leaves_what_another_one_holds(settings):
    job = the_job(settings)
    note(job.task_folder, identity(settings, settings.task), {})
    with another_process_holding(job.lock):
        forget_unstarted(settings, settings.task)
        assert (job.task_folder / "settings.json").exists()
    forget_unstarted(settings, settings.task)
    assert not Path(settings.runs_folder).exists()


def test_a_folder_that_cannot_be_written_is_one_line(settings, tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(UserError, match="write runs_folder=FOLDER with a folder that you may write to"):
        finetune(settings)


def test_the_best_model_is_kept_and_one_that_is_being_written_is_left(tmp_path):
    cell = tmp_path / "rate0.001_batch8"
    for seed, score in ((0, 0.5), (1, 0.7), (2, None)):
        model = cell / f"seed-{seed}/model"
        model.mkdir(parents=True)
        (model / "weights").write_text(str(seed))
        if score is not None:
            result = {"learning_rate": 1e-3, "batch_size": 8, "seed": seed, "dev": {"score": score}}
            (cell / f"seed-{seed}.json").write_text(json.dumps(result))
    assert (keep_best(tmp_path, keep_all=False) / "weights").read_text() == "1"
    assert [path.parent.name for path in cell.glob("seed-*/model")] == ["seed-2"]


def test_who_waits_gets_what_was_held_for_a_moment(tmp_path):
    lock = tmp_path / "lock"
    with another_process_holding(lock) as process:
        with pytest.raises(Held), held(lock, "it", "wait", wait=0.1):
            pass
        os.kill(process.pid, signal.SIGKILL)
        with held(lock, "it", "wait", wait=20):
            pass


@pytest.mark.slow  # two processes import everything and train
def test_two_commands_of_one_name_share_the_seeds_and_write_one_table(settings, checkpoint, tmp_path):
    words = [
        "task=custom", f"data.train={tmp_path / 'a.csv'}", f"checkpoint={checkpoint}", "task.epochs=1",
        f"runs_folder={tmp_path / 'runs'}", "training.precision=float32", "seeds=3",
    ]  # fmt: skip
    command = [sys.executable, "-m", "nystromformer", "finetune", *words]
    both = [subprocess.Popen([*command, "name=a"], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    trained = [set(re.findall(r"seed (\d): held out at step", text)) for text in printed]
    assert trained[0] | trained[1] == {"0", "1", "2"}
    assert not trained[0] & trained[1]
    assert any("| a (nystrom) |" in text for text in printed)
    task = tmp_path / "runs/a/custom"
    assert json.loads((task / "summary.json").read_text())["best"]["seeds"] == [0, 1, 2]
    assert (task / "model/model.safetensors").exists()
    assert not list(task.glob("rate*/seed-*/model"))
    shutil.rmtree(tmp_path / "runs/a")
