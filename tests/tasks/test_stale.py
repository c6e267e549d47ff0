"""A finished or stopped seed is of its data, checkpoint and tokenizer by content; others are named."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from nystromformer.cli import main
from nystromformer.tasks import finetune as finetune_module
from nystromformer.tasks.benchmarks import TASKS
from nystromformer.training.signals import StopRequest

from .conftest import make_checkpoint, planted, write_glue


def rows_of(count: int, *, flipped: int = 0, seed: int = 0) -> str:
    """A table of two classes in turn; the first `flipped` labels are wrong."""
    draw = random.Random(seed)
    lines = [
        f"{planted(number % 2, draw)},{'ab'[(number + (number < flipped)) % 2]}" for number in range(count)
    ]
    return "\n".join(["text,label", *lines]) + "\n"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder in which a seed was trained on train.csv, dev.csv and test.csv from model/."""
    home = tmp_path_factory.mktemp("trained")
    make_checkpoint(home / "model")
    for seed, name in enumerate(("train", "dev", "test")):
        (home / f"{name}.csv").write_text(rows_of(16, seed=seed))
    assert main(command(home)) == 0
    return home


@pytest.fixture
def home(trained, tmp_path) -> Path:
    """A copy of it, at another place and with other dates."""
    return shutil.copytree(trained, tmp_path / "home", copy_function=shutil.copyfile)


def command(home: Path, *more: str) -> list[str]:
    files = [f"data.{name}={home / name}.csv" for name in ("train", "dev", "test")]
    return [
        "finetune", "task=custom", *files, f"checkpoint={home / 'model'}", f"runs_folder={home / 'runs'}",
        "task.epochs=1", "task.batch_sizes=[8]", "task.learning_rates=[1e-3]", "training.precision=float32",
        "name=a", *more,
    ]  # fmt: skip


def results(home: Path) -> dict[str, str]:
    """Everything that was written, by name."""
    files = (home / "runs").rglob("*")
    return {str(path): path.read_text(errors="replace") for path in files if path.suffix in (".json", ".md")}


def refused(home: Path, capsys, *more: str) -> str:
    """The one line that a command ends with; what was there before is as it was."""
    before = results(home)
    capsys.readouterr()
    assert main(command(home, *more)) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1, error
    assert results(home) == before
    return error


def test_a_copied_folder_and_touched_files_are_the_same(home, capsys):
    os.utime(home / "train.csv")
    (home / "other.csv").write_bytes((home / "dev.csv").read_bytes())
    assert main(command(home, f"data.dev={home / 'other.csv'}")) == 0
    assert "1 of 1 seeds are done already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("train", rows_of(16, flipped=2), "data.train="),
        ("train", rows_of(18), " now: write"),
        ("train", rows_of(8), "): 16 examples "),
        ("dev", rows_of(16, flipped=1, seed=1), "dev examples (data.dev="),
        ("test", rows_of(16, flipped=2, seed=2), "test examples (data.test="),
    ],
    ids=["labels", "added rows", "removed rows", "held-out labels", "test labels"],
)
def test_changed_data_are_named(home, capsys, name, text, told):
    (home / f"{name}.csv").write_text(text)
    error = refused(home, capsys)
    assert told in error
    assert f"write name=OTHER to train on what is there now, or remove {home / 'runs/a/custom'}" in error
    assert ("training examples" in error) == (name == "train")
    assert "weights" not in error


def test_the_order_of_the_classes_is_part_of_the_data(home, capsys):
    """`c` for `b`: the ids are as before, the names are not."""
    for name in ("train", "dev", "test"):
        path = home / f"{name}.csv"
        path.write_text(path.read_text().replace(",b\n", ",c\n"))
    assert "training examples" in refused(home, capsys)
    assert main(command(home, "name=b")) == 0, "what the message says to write trains anew"
    kept = json.loads((home / "runs/b/custom/model/config.json").read_text())
    assert kept["id2label"] == {"0": "a", "1": "c"}


def test_more_seeds_are_not_added_on_other_data(home, capsys):
    (home / "train.csv").write_text(rows_of(16, flipped=2))
    assert "training examples" in refused(home, capsys, "seeds=2")
    assert not list((home / "runs").glob("a/custom/rate*/seed-1*"))


def test_a_checkpoint_retrained_in_place_is_another(home, capsys):
    path = home / "model/model.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[0]
    tensors[name] = tensors[name] + 1e-3
    save_file(tensors, path, metadata={"format": "pt"})
    assert "weights (checkpoint=" in refused(home, capsys)


def test_a_checkpoint_saved_again_by_another_version_is_the_same(home, capsys):
    config = home / "model/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "transformers_version": "99"}))
    assert main(command(home)) == 0
    config.write_text(json.dumps({**json.loads(config.read_text()), "layer_norm_eps": 1e-3}))
    assert "weights (checkpoint=" in refused(home, capsys)


def test_another_tokenizer_is_named(home, capsys):
    path = home / "model/tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["film"], vocabulary["plot"] = vocabulary["plot"], vocabulary["film"]
    path.write_text(json.dumps(content))
    error = refused(home, capsys)
    assert f"since: tokenizer (checkpoint={home / 'model'})" in error
    assert "weights" not in error


def test_a_stopped_seed_does_not_go_on_on_other_data(home, capsys, monkeypatch):
    asked = iter([False] * 2 + [True] * 9)
    with monkeypatch.context() as patch:
        patch.setattr(finetune_module, "StopRequest", type("Soon", (StopRequest,), {
            "decide": lambda self, votes: next(asked),
            "exit": lambda self: (_ for _ in ()).throw(SystemExit(143)),
        }))  # fmt: skip
        with pytest.raises(SystemExit):
            main(command(home, "name=stopped", "task.epochs=3"))
    assert list(home.glob("runs/stopped/custom/rate*/seed-0/checkpoints/step-3"))
    whole = (home / "train.csv").read_text()
    (home / "train.csv").write_text(rows_of(8))
    assert "data.train=" in refused(home, capsys, "name=stopped", "task.epochs=3")
    (home / "train.csv").write_text(whole)
    assert main(command(home, "name=stopped", "task.epochs=3")) == 0
    assert "resumed at step 3" in capsys.readouterr().out


def test_what_is_gone_is_said_and_its_results_are_shown(home, capsys):
    noted(home).write_text(json.dumps(json.loads(noted(home).read_text()) | paths(home)))
    (home / "train.csv").unlink()
    shutil.rmtree(home / "model")
    assert main(command(home)) == 0
    printed = capsys.readouterr().out
    assert f"checkpoint={home / 'model'}, data.train={home / 'train.csv'} is not there any more" in printed
    assert "| a (nystrom) |" in printed
    assert "no checkpoint" in refused(home, capsys, "seeds=2")
    wrong = f"data.train={home / 'wrong.csv'}"  # a slip of the pen is not a file that went
    assert "holds results with data.train=" in refused(home, capsys, wrong)


def noted(home: Path) -> Path:
    return home / "runs/a/custom/settings.json"


def paths(home: Path) -> dict[str, str]:
    """Of the copy; what was noted are those of the original."""
    return {"checkpoint": f"{home}/model"} | {
        f"data.{n}": f"{home}/{n}.csv" for n in ("train", "dev", "test")
    }


def as_an_older_version_left_it(home: Path, *missing: str, **more: object) -> None:
    content = json.loads(noted(home).read_text())
    kept = {key: value for key, value in content.items() if key not in ("contents", *missing)}
    noted(home).write_text(json.dumps(kept | paths(home) | more))
    (result,) = home.glob("runs/a/custom/rate*/seed-0.json")
    content = json.loads(result.read_text())
    del content["contents"]
    result.write_text(json.dumps(content))


def test_a_setting_of_today_has_had_its_default(home, capsys):
    as_an_older_version_left_it(home, "training.evaluations_per_epoch")
    error = refused(home, capsys, "training.evaluations_per_epoch=2", "training.beta1=0.5")
    then, now = (
        f"training.beta1={beta} training.evaluations_per_epoch={n}" for beta, n in ((0.9, 1), (0.5, 2))
    )
    assert f"holds results with {then}, and now {now}: write {then} to add to them" in error


def test_a_setting_that_is_gone_is_named(home, capsys):
    as_an_older_version_left_it(home, **{"training.dreams": "electric"})
    assert "training.dreams=electric, which is no setting of this version" in refused(home, capsys)


def test_a_seed_of_other_data_is_found_without_settings(home, capsys):
    noted(home).unlink()
    (home / "dev.csv").write_text(rows_of(12, seed=1))
    error = refused(home, capsys)
    assert "seed-0.json holds results of what has changed since: dev examples" in error


def test_a_new_unlabelled_test_set_changes_nothing(tmp_path, checkpoint, capsys):
    root = write_glue(tmp_path / "glue", TASKS["sst2"], train=8, dev=4)
    words = [
        "finetune", "task=sst2", f"data.root={root}", f"checkpoint={checkpoint}", "task.epochs=1",
        f"runs_folder={tmp_path / 'runs'}", "training.precision=float32",
    ]  # fmt: skip
    assert main(words) == 0
    write_glue(root, TASKS["sst2"], train=8, dev=4, test=3)
    capsys.readouterr()
    assert main(words) == 0
    assert "1 of 1 seeds are done already" in capsys.readouterr().out
    write_glue(root, TASKS["sst2"], train=8, dev=6)
    assert main(words) == 2
    assert f"dev examples (data.root={root}): 4 examples" in capsys.readouterr().err


def test_runs_of_other_data_beside_each_other_are_named(home, capsys):
    beside = f"beside=[{home / 'runs/a'}]"
    assert main(command(home, "name=b", beside)) == 0
    assert "compare nothing" not in capsys.readouterr().out
    (home / "dev.csv").write_text(rows_of(12, seed=1))
    assert main(command(home, "name=c", beside)) == 0
    assert (
        "**custom of a is of other data than c's: dev. Their figures compare nothing.**"
        in (home / "runs/c/results.md").read_text()
    )


def test_an_evaluation_leaves_nothing_of_the_one_before(home):
    words = ["evaluate", f"checkpoint={home / 'runs/a/custom/model'}", f"folder={home / 'seen'}"]
    assert main([*words, f"file={home / 'dev.csv'}"]) == 0
    assert {path.name for path in (home / "seen").glob("*.png")} == {"confusion.png", "reliability.png"}
    (home / "bare.jsonl").write_text('{"text": "the plot was plain"}\n')
    assert main([*words, f"file={home / 'bare.jsonl'}"]) == 0
    assert not list((home / "seen").glob("*.png"))
    assert json.loads((home / "seen/result.json").read_text())["examples"] == 1
