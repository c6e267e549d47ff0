"""Several numbers a text: their columns, figures against formulas, and a model of use to others."""

from __future__ import annotations

import json
import random
import re

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from nystromformer.cli import main
from nystromformer.errors import UserError
from nystromformer.settings.finetune import TaskDataSettings, TaskSettings
from nystromformer.tasks.kinds.numbers import NumbersTask
from nystromformer.tasks.reading import load_splits
from nystromformer.tasks.task import Splits
from tests.tasks.conftest import FILLERS

TASK = NumbersTask(
    "numbers", "numbers", ("text",), "a", labels=("a", "b"), metrics=("pearson", "spearman", "mse", "mae"),
    score=("pearson",), regression=True,
)  # fmt: skip


def read(path, metric: str = "pearson", **more) -> Splits:
    data = TaskDataSettings(train=str(path), dev=str(path), labels=["a", "b"], **more)
    return load_splits(TaskSettings("numbers", "numbers", metric=metric), data)


def test_columns_are_read_and_grades_are_known(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,b,a\nx,1,2.5\ny,-3,1e1\n")
    splits = read(path)
    assert splits.train.labels == [[2.5, 1], [10, -3]]
    assert splits.task.grades == ()
    with pytest.raises(UserError, match=r"task\.metric=kappa is for grades, and .* not whole"):
        read(path, "kappa")
    path.write_text("text,b,a\nx,1,5\ny,3,1\nz,1,1\n")
    assert read(path, "kappa").task.grades == ((1, 5), (1, 3))


@pytest.mark.parametrize(
    ("row", "message"),
    [("x,1,", "line 2 has no label in 'a'"), ("x,1;2,1", "line 2 has '1;2' in 'b', which is no number")],
)
def test_what_is_no_number_is_named(row, message, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(f"text,b,a\n{row}\ny,2,1\n")
    with pytest.raises(UserError, match=message):
        read(path)
    assert len(read(path, malformed_rows="skip").train) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task.metric=f1"], "task.metric='f1' does not fit task.kind=numbers: write one of pearson"),
        (["data.labels=[]"], "data.labels is empty: with task=numbers write data.labels=[COLUMN,…]"),
        (["data.train=null"], "data.train is empty: with task=numbers write data.train=FILE"),
        (["data.root=glue"], "data.source and data.root are not for task.kind=numbers"),
    ],
    ids=["metric", "labels", "train", "root"],
)
def test_settings_that_do_not_fit_are_one_line(words, message, checkpoint, capsys):
    asked = ["finetune", f"checkpoint={checkpoint}", "task=numbers", "data.train=a.csv", "data.labels=[a]"]
    assert main([*asked, *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_figures_are_their_formulas():
    draw = np.random.default_rng(0)
    truth, found = draw.normal(size=(20, 2)), draw.normal(size=(20, 2))
    figures = TASK.figures(truth.tolist(), found.tolist())
    for number, column in enumerate("ab"):
        one, other = truth[:, number], found[:, number]
        assert figures[f"pearson_{column}"] == pytest.approx(pearsonr(one, other).statistic)
        assert figures[f"spearman_{column}"] == pytest.approx(spearmanr(one, other).statistic)
        assert figures[f"mae_{column}"] == pytest.approx(abs(one - other).mean())
    assert figures["mse"] == pytest.approx(((truth - found) ** 2).mean())
    assert figures["score"] == figures["pearson"]


def test_kappa_is_its_formula():
    """1 − Σ w·observed / Σ w·expected with squared distances of grades, predictions rounded to a grade."""
    grades = (1.0, 2.0, 5.0)
    task = NumbersTask(
        "numbers", "numbers", ("text",), "a", labels=("a",), metrics=("kappa",), score=("kappa",),
        regression=True, grades=(grades,),
    )  # fmt: skip
    truth = np.array([1, 2, 5, 5, 2, 1, 1.0])
    found = np.array([-3, 1.6, 4, 9, 3.4, 1.4, 3.6])
    rounded = np.array([1, 2, 5, 5, 2, 1, 5])
    places = {grade: number for number, grade in enumerate(grades)}  # sklearn weighs by the grade's place
    observed = np.zeros((3, 3))
    for one, other in zip(truth, rounded, strict=True):
        observed[places[one], places[other]] += 1
    weights = (np.arange(3)[:, None] - np.arange(3)) ** 2
    expected = np.outer(observed.sum(1), observed.sum(0)) / len(truth)
    wanted = 1 - (weights * observed).sum() / (weights * expected).sum()
    figures = task.figures(truth[:, None].tolist(), found[:, None].tolist())
    assert figures["kappa"] == pytest.approx(wanted)
    assert task.figures([[1.0], [1.0]], [[1.0], [0.7]])["kappa"] == 0.0


def test_it_is_learned_and_the_card_runs(words, tmp_path, capsys):
    draw = random.Random(1)
    rows = []
    for _ in range(160):
        great, plain = draw.randrange(3), draw.randrange(3)
        text = [*draw.choices(FILLERS, k=4), *["great"] * great, *["plain"] * plain]
        draw.shuffle(text)
        rows.append({"text": " ".join(text), "a": great, "b": -plain})
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = words("task=numbers", f"data.train={path}", "data.labels=[a,b]", "name=two", "task.metric=kappa")
    asked += ["task.learning_rates=[3e-3]", "task.batch_sizes=[8]", "task.epochs=10"]
    assert main(asked) == 0
    folder = tmp_path / "runs/two/numbers"
    (result,) = [json.loads(file.read_text()) for file in folder.glob("rate*/seed-0.json")]
    assert result["dev"]["pearson_a"] > 0.75
    assert result["dev"]["pearson_b"] > 0.75
    assert result["dev"]["score"] == result["dev"]["kappa"] > 0.5
    first, second = tmp_path / "first", tmp_path / "second"
    command = ["evaluate", f"checkpoint={folder / 'model'}"]
    assert main([*command, f"file={path}", f"folder={first}"]) == 0
    assert main([*command, f"file={first / 'predictions.jsonl'}", f"folder={second}"]) == 0
    results = [json.loads((place / "result.json").read_text()) for place in (first, second)]
    assert results[0]["figures"] == results[1]["figures"]
    line = json.loads((first / "predictions.jsonl").read_text().splitlines()[0])
    (code,) = re.findall("```python\n(.*?)```", (folder / "model/README.md").read_text(), re.DOTALL)
    code = code.replace("PATH OF THIS FOLDER", str(folder / "model")).replace("a text", rows[0]["text"])
    exec(code.replace("print(", "found = ("), names := {})
    (found,) = names["found"]
    assert {one["label"]: one["score"] for one in found} == pytest.approx(line["prediction"], abs=1e-3)
    capsys.readouterr()
    assert main([*command, f"file={path}", "label=a"]) == 2
    assert "has 2 columns of numbers, a, b: name them so in the file" in capsys.readouterr().err
