"""The recipes of scripts/ start what they say: every command of a dry run composes."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from nystromformer.cli import main
from nystromformer.settings.compose import compose

SCRIPTS = Path(__file__).parent.parent / "scripts"
RECIPES = sorted(path for path in SCRIPTS.glob("*.sh") if path.name != "common.sh")

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")


def commands(recipe: Path, *words: str, **environment: str) -> list[list[str]]:
    done = subprocess.run(
        ["bash", recipe, *words],
        env={**os.environ, "DRY_RUN": "1", **environment},
        capture_output=True, text=True, timeout=60, cwd=SCRIPTS.parent.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_command_composes(recipe, capsys):
    found = commands(recipe)
    assert found
    for command, *words in (words[1:] for words in found):
        compose(command, words)  # raises where the words do not fit together
    assert main([*found[0][1:], "--cfg", "job"]) == 0
    assert capsys.readouterr().out


def test_words_and_folders_reach_the_commands():
    found = commands(SCRIPTS / "glue_nystromformer_1024.sh", "data.workers=3", GLUE_ROOT="/glue")
    pretraining = [words for words in found if words[1] == "pretrain"]
    assert [words[-1] for words in pretraining] == ["data.workers=3"] * 2
    finetuning = {words[2]: words for words in found if words[1] == "finetune"}
    assert "data.root=/glue" in finetuning["task=sst2"]
    assert not any(word.startswith("data.root") for word in finetuning["task=imdb"])


def test_the_rows_of_the_table_are_the_runs_that_reproduce_reads():
    """What the recipes train is what `reproduce table=glue scale=paper` finds finished."""
    scale = compose("reproduce", ["table=glue", "scale=paper"]).scale
    wanted = {
        "glue_bert": scale.glue.bert,
        "glue_nystromformer_512": scale.glue.nystromformer,
        "glue_nystromformer_1024": scale.glue.longer,
    }
    for recipe, words in wanted.items():
        found = [c[2:] for c in commands(SCRIPTS / f"{recipe}.sh") if c[1] == "pretrain"][-1]
        more = [word for word in found if word.startswith("init.path=")]
        assert compose("pretrain", found) == compose("pretrain", [*words, *more])


def test_under_slurm_each_gpu_is_a_task(tmp_path):
    """`srun` is a stand-in that says what it was asked for."""
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/sh\necho "srun $*"\n')
    srun.chmod(0o755)
    done = subprocess.run(
        ["bash", SCRIPTS / "small.sh"],
        env={**os.environ, "SLURM_JOB_ID": "7", "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second, last = done.stdout.splitlines()
    assert "RANK=$SLURM_PROCID" in first
    assert first.endswith("task pretrain experiment=bert_small_512")
    assert second.endswith("task pretrain experiment=small_512")
    assert (
        last == "srun --nodes=1 --ntasks=1 --cpu-bind=none nystromformer reproduce figure=small scale=paper"
    )
