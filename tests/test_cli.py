"""The command line: what it prints, and how it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import yaml

from nystromformer import cli
from nystromformer.errors import UserError


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nystromformer", *words],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=60,
    )


def test_overview_lists_the_commands(capsys):
    for words in ([], ["--help"], ["-h"]):
        assert cli.main(words) == 0
        out = capsys.readouterr().out
        assert all(f"  {command}" in out for command in cli.COMMANDS)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_shows_groups_settings_and_examples(command, capsys):
    assert cli.main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert cli.COMMANDS[command].summary in out
    lone = {"benchmark": "repeats=5"}
    lone |= {"evaluate": "folder=evaluated", "predict": "folder=predicted", "export": "format=onnx"}
    if command in lone:
        assert "groups" not in out
        assert lone[command] in out
    elif command == "convert":
        assert "  data=imdb" in out
        assert "layout=nystromformer" in out
    elif command == "finetune":
        assert "* task=sst2" in out
        assert "task.epochs=4" in out
    elif command == "reproduce":
        assert "* scale=paper" in out
        assert "scale.efficiency.repeats=20" in out
    else:
        assert "* experiment=demo" in out
        assert "training.global_batch_size=" in out
    assert all(example in out for example in cli.COMMANDS[command].examples)


def test_help_shows_the_values_of_its_command_line(capsys):
    assert cli.main(["pretrain", "experiment=small_512", "--help"]) == 0
    out = capsys.readouterr().out
    assert "* experiment=small_512" in out
    assert "* model=small" in out
    assert "model.num_hidden_layers=4" in out
    assert cli.main(["pretrain", "experiment=base_512", "--help"]) == 0
    out = capsys.readouterr().out
    assert "model.num_hidden_layers=(that of init.path)" in out
    assert "* model=" not in out


def test_examples_compose():
    import shlex

    from nystromformer.settings.compose import compose

    for command in cli.COMMANDS.values():
        for example in command.examples:
            words = shlex.split(example)
            name, *overrides = words[words.index("nystromformer") + 1 :]
            compose(name, command.overrides(overrides))


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.split()[0] == "nystromformer"


def test_cfg_job_is_the_yaml_of_the_run(capsys):
    assert cli.main(["pretrain", "training.steps=200", "--cfg", "job", "name=mine"]) == 0
    settings = yaml.safe_load(capsys.readouterr().out)
    assert settings["training"]["steps"] == 200
    assert settings["name"] == "mine"


@pytest.mark.parametrize("words", [["--help"], ["pretrain", "--help"], ["pretrain", "--cfg", "job"]])
def test_answers_at_once_without_the_heavy_libraries(words):
    code = (
        "import sys; from nystromformer.cli import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'transformers', 'datasets', 'pyarrow', 'numpy', 'wandb'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", code, *words], check=True, stdout=subprocess.DEVNULL, timeout=60)
    assert time.monotonic() - start < 5  # 0.1 to 0.4 s on an idle machine


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["pretrian"], "nystromformer: 'pretrian' is no command: did you mean pretrain?"),
        (
            ["dance"],
            "nystromformer: 'dance' is no command: write one of prepare, pretrain, finetune, "
            "evaluate, predict, benchmark, convert, export, reproduce",
        ),
        (
            ["pretrain", "training.stepz=5"],
            "nystromformer: training.stepz is no setting: did you mean training.steps?",
        ),
        (
            ["pretrain", "--fast"],
            "nystromformer: unrecognized arguments: --fast: write nystromformer pretrain [KEY=VALUE ...] "
            "[--cfg job] [--help]",
        ),
    ],
)
def test_mistake_is_one_line_and_exit_code_2(words, line, capsys):
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert captured.err == line + "\n"
    assert captured.out == ""


def test_mistake_in_a_real_process():
    ended = run("pretrain", "model.num_attention_heads=5")
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith("nystromformer: model.num_attention_heads=5 does not divide")
    assert len(ended.stderr.splitlines()) == 1


def test_only_the_first_process_reports():
    ended = run("pretrain", "training.stepz=5", RANK="1")
    assert (ended.returncode, ended.stderr) == (2, "")


def test_a_reader_that_has_seen_enough():
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [sys.executable, "-m", "nystromformer", "pretrain", "--help"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, "")


@pytest.fixture
def stand_in(monkeypatch):
    """Replace a command's module, which is imported only when the command runs."""

    def replace(module: str, **functions):
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(**functions))

    return replace


def test_pretrain_gets_the_settings(stand_in):
    seen = []
    stand_in("nystromformer.training.pretrain", pretrain=seen.append)
    assert cli.main(["pretrain", "experiment=small_512"]) == 0
    assert seen[0].name == "small_512"


def test_mistake_found_by_the_command(stand_in, capsys):
    def pretrain(settings):
        raise UserError("no.txt does not exist")

    stand_in("nystromformer.training.pretrain", pretrain=pretrain)
    assert cli.main(["pretrain"]) == 2
    assert capsys.readouterr().err == "nystromformer: no.txt does not exist\n"


def test_interrupt_leaves_no_traceback(stand_in, capsys):
    def pretrain(settings):
        raise KeyboardInterrupt

    stand_in("nystromformer.training.pretrain", pretrain=pretrain)
    assert cli.main(["pretrain"]) == 130
    assert capsys.readouterr().err == ""


def test_prepare_says_where_and_how_many(stand_in, capsys):
    prepared = SimpleNamespace(
        folder="prepared/imdb-1", manifest={"counts": {"train": {"documents": 1234, "chunks": 9}}}
    )
    stand_in("nystromformer.data.prepare", prepare=lambda settings, merge: prepared, prepare_shard=None)
    assert cli.main(["prepare"]) == 0
    assert capsys.readouterr().out == "prepared/imdb-1\n  train: 1,234 documents, 9 chunks\n"
