"""The commands of docs/tasks.md run, in smoke size; every kind and task of one's own is in its table."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from nystromformer.cli import main
from nystromformer.settings.compose import compose, config_folder, groups_in
from nystromformer.settings.finetune import KINDS, FinetuneSettings

PAGE = (Path(__file__).parents[2] / "docs/tasks.md").read_text(encoding="utf-8")


@pytest.fixture
def place(tmp_path, monkeypatch, checkpoint):
    """The files that the page speaks of, in the current folder."""
    monkeypatch.chdir(tmp_path)
    Path("runs/demo").mkdir(parents=True)
    Path("runs/demo/model").symlink_to(checkpoint)

    def lines(name: str, rows: list[dict]) -> None:
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    kinds = [("great", "awful")[n % 2] for n in range(24)]
    lines(
        "mine.jsonl",
        [
            {"text": f"a {k} film", "kind": k, "topics": [k], "style": n, "content": 1}
            for n, k in enumerate(kinds)
        ],
    )
    Path("words.conll").write_text("".join(f"the\tO\n{k}\tB-PER\nfilm\tI-PER\n\n" for k in kinds))
    lines(
        "choices.jsonl",
        [
            {"context": f"a {k} film", "question": "which", "choices": ["great", "awful"], "label": k}
            for k in kinds
        ],
    )
    questions = [
        {
            "context": f"a {k} film {n}",
            "qas": [{"id": str(n), "question": "which", "answers": [{"text": k, "answer_start": 2}]}],
        }
        for n, k in enumerate(kinds)
    ]
    Path("questions.json").write_text(json.dumps({"data": [{"paragraphs": questions}]}))


def test_every_command_runs(place, capsys):
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
    commands = [shlex.split(line) for block in blocks for line in block.splitlines()]
    small = ["task.epochs=1", "task.batch_sizes=[8]", "task.learning_rates=[1e-3]"]
    for words in commands:
        assert words[0] == ".venv/bin/nystromformer"
        assert main([*words[1:], *(small if words[1] == "finetune" else [])]) == 0, words
    trained = {path.parent.parent.name for path in Path("runs").glob("*/*/model")}
    assert trained == {"classes", "topics", "grades", "spans", "choices", "answers"}
    assert len(Path("predicted/predictions.jsonl").read_text().splitlines()) == 24
    assert Path("tagged/predictions.conll").exists()


def test_every_task_of_ones_own_is_in_the_table():
    rows = re.findall(r"^\| `(.*?)\|\s*`(\w+)` \|", PAGE, re.MULTILINE)
    told = {name: kind for names, kind in rows for name in re.findall(r"(\w+)`", names) if "=" not in name}
    assert set(told.values()) == set(KINDS)
    needed = ["data.train=a.jsonl", "data.labels=[a]", "data.pairs=spans", "checkpoint=somewhere"]
    for option in groups_in(config_folder())["task"]:
        settings = compose("finetune", [f"task={option}", "checkpoint=somewhere", *needed])
        assert isinstance(settings, FinetuneSettings)
        assert option not in told or told[option] == settings.task.kind
        assert option in told or settings.task.kind == "sequence"
