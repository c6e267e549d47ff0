"""The commands and the Python of docs/embedding.md run, in smoke size."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np

from nystromformer.cli import main

PAGE = (Path(__file__).parents[2] / "docs/embedding.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


def test_every_command_runs_and_the_python_gives_the_same_vectors(tmp_path, monkeypatch, checkpoint):
    monkeypatch.chdir(tmp_path)
    Path("runs/demo").mkdir(parents=True)
    Path("runs/demo/model").symlink_to(checkpoint)
    rows = [{"title": f"film {n}", "text": f"film {n}. the {n % 7} story of one film"} for n in range(24)]
    Path("notes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = ["task.epochs=1", "task.batch_sizes=[8]", "task.learning_rates=[1e-3]"]
    for words in map(shlex.split, "".join(blocks("bash")).splitlines()):
        assert words[0] == ".venv/bin/nystromformer"
        assert main([*words[1:], *(small if words[1] == "finetune" else [])]) == 0, words
    assert {path.parent.parent.name for path in Path("runs").glob("*/*/model")} == {
        "search",
        "alone",
        "taught",
    }
    assert Path("found/vectors.parquet").exists()
    assert len(np.load("embedded/vectors.npy")) == 24
    theirs, ours = blocks("python")
    one: dict = {}
    exec(theirs, one)
    exec(ours, one)
    wanted = one["model"].encode(["a text", "another"])
    np.testing.assert_allclose(one["vectors"], wanted, atol=1e-5)
