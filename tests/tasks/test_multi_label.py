"""Any number of labels a text: reading, figures, thresholds, and a model that other programs can use."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from nystromformer.cli import main
from nystromformer.errors import UserError
from nystromformer.model import NystromformerConfig
from nystromformer.settings.finetune import TaskDataSettings, TaskSettings
from nystromformer.tasks.kinds.multi_label import MultiLabelTask, best_threshold
from nystromformer.tasks.reading import load_splits
from nystromformer.tasks.task import Encoded, Splits
from tests.tasks.conftest import FILLERS, PLANTED

TASK = MultiLabelTask(
    "multi_label", "multi_label", ("text",), "label", ("a", "b", "c"), labels=("a", "b", "c"),
    metrics=("average_precision", "f1", "f1_macro"), score=("f1",),
)  # fmt: skip


def read(path: Path, **more) -> Splits:
    data = TaskDataSettings(train=str(path), dev=str(path), **more)
    return load_splits(TaskSettings("multi_label", "multi_label", metric="f1"), data)


def as_csv(path: Path, cells: list[str]) -> Path:
    path.write_text("text,label\n" + "".join(f'a text,"{cell}"\n' for cell in cells))
    return path


def as_json(path: Path, labels: list) -> Path:
    path.write_text("".join(json.dumps({"text": "a text", "label": label}) + "\n" for label in labels))
    return path


def test_a_table_and_json_lines_say_the_same(tmp_path):
    cells = ["b, a", "", "c", "a,a", "10,b ,"]
    lists = [["b", "a"], [], ["c"], ["a", "a"], [10, "b"]]
    for splits in (
        read(as_csv(tmp_path / "a.csv", cells)),
        read(as_json(tmp_path / "a.jsonl", lists)),
        read(as_json(tmp_path / "b.jsonl", [["a", "b"], "", "c", "a, a", "10,b"])),
        read(as_csv(tmp_path / "b.csv", [c.replace(",", "|") for c in cells]), label_separator="pipe"),
    ):
        assert splits.task.labels == ("10", "a", "b", "c")
        assert splits.train.labels == [[1, 2], [], [3], [1], [0, 2]]
        assert splits.dev["dev"].labels == splits.train.labels


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([["a"], None], r"line 2 is malformed \(no 'label'\)"),
        ([["a"], {"a": 1}], "line 2 is malformed"),
        ([["a"], [["b"]]], r"line 2 is malformed \('label' is a list of lists"),
        ([["a"], ["b", ""]], r"line 2 is malformed \(an empty label in 'label'\)"),
        ([["a"], ["b", None]], r"line 2 is malformed \(an empty label in 'label'\)"),
        ([[], []], "no example has a label in 'label': name another column"),
    ],
    ids=["null", "an object", "lists", "an empty label", "a null label", "no labels at all"],
)
def test_what_is_no_list_of_labels_is_named(labels, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        read(as_json(tmp_path / "a.jsonl", labels))
    assert "\n" not in str(caught.value)


def test_a_label_that_training_has_not_is_named(tmp_path):
    train, dev = as_csv(tmp_path / "a.csv", ["a", "b", "a,b"]), as_csv(tmp_path / "b.csv", ["a", "a,d"])
    with pytest.raises(UserError, match="line 3 has the label 'd', which is none of 'a', 'b': mend the row"):
        load_splits(
            TaskSettings("multi_label", "multi_label", metric="f1"),
            TaskDataSettings(train=str(train), dev=str(dev)),
        )
    splits = load_splits(
        TaskSettings("multi_label", "multi_label", metric="f1"),
        TaskDataSettings(train=str(train), dev=str(dev), malformed_rows="skip"),
    )
    assert (len(splits.dev["dev"]), len(splits.skipped)) == (1, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task.metric=accuracy"], "task.metric='accuracy' does not fit task.kind=multi_label: write one of"),
        (["task.regression=true"], "task.regression=true does not fit task.kind=multi_label"),
        (["data.label_separator=space"], "data.label_separator='space' is unknown: write comma, semicolon"),
        (["data.train=null"], "data.train is empty: with task=multi_label write data.train=FILE"),
        (["submission=true"], "submission=true is for GLUE"),
        (["data.source=hub"], "data.source and data.root are not for task.kind=multi_label"),
    ],
    ids=lambda value: value[0].partition("=")[0] if isinstance(value, list) else "",
)
def test_settings_that_do_not_fit_are_one_line(words, message, checkpoint, capsys):
    asked = ["finetune", f"checkpoint={checkpoint}", "task=multi_label", "data.train=a.csv"]
    assert main([*asked, *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_every_label_is_held_out_and_trained_on(tmp_path):
    """Held out by the rarest label of each text, however often the common ones stand beside."""
    labels = [["common", *(["rare"] if number % 10 == 0 else [])] for number in range(40)]
    path = tmp_path / "a.jsonl"
    rows = [{"text": f"text {number}", "label": label} for number, label in enumerate(labels)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits = load_splits(
        TaskSettings("multi_label", "multi_label", metric="f1"), TaskDataSettings(train=str(path))
    )
    rare = splits.task.labels.index("rare")
    held = [rare in present for present in splits.dev["dev"].labels or []]
    assert len(held) == 5
    assert sum(held) == 1


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.3, 0.31, 0.7, 1.0])), min_size=1))
@settings(max_examples=200, deadline=None)
def test_no_threshold_is_better(pairs):
    truth, chances = (np.array(column) for column in zip(*pairs, strict=True))
    chosen = best_threshold(truth, chances)
    if not truth.any():
        assert chosen == 0.5
        return

    def f1(threshold: float) -> float:
        found = chances >= threshold
        return 2 * (found & truth).sum() / (found.sum() + truth.sum())

    assert f1(chosen) == pytest.approx(max(f1(threshold) for threshold in (*chances, 0.05, 0.2, 0.5, 0.9)))


def test_figures_by_hand():
    """Label c is in no example, and is left out of the means over labels."""
    labels = [[0], [0, 1], [], [1]]
    chances = np.array([[0.9, 0.6, 0.1], [0.4, 0.8, 0.2], [0.7, 0.1, 0.3], [0.2, 0.7, 0.1]])
    found = TASK.figures(labels, list(chances))
    # a: ranked 0.9 right, 0.7 wrong, 0.4 right; b: 0.8, 0.7 right.
    assert found["average_precision"] == pytest.approx(((1 + 2 / 3) / 2 + 1) / 2)
    assert found["f1"] == pytest.approx(2 * 3 / (2 * 3 + 2 + 1))
    assert found["f1_macro"] == pytest.approx((1 / 2 + 4 / 5) / 2)
    assert found["score"] == found["f1"]
    # F1 of a is highest with all but the lowest, of b with the two highest.
    logits = np.log(chances / (1 - chances)).astype(np.float32)
    rows = Encoded([[5]] * 4, None, labels, np.ones(4, np.int64), np.ones(4, np.int64))
    fitted = TASK.fitted(rows, labels, list(logits))
    assert fitted.thresholds == pytest.approx((0.3, 0.65, 0.5), abs=1e-5)
    assert fitted.figures(labels, list(chances))["f1"] > found["f1"]


def test_the_held_out_loss_is_the_heads(checkpoint):
    labels = [[0, 2], [], [1]]
    encoded = Encoded([[5, 6], [7], [8]], None, labels, np.array([2, 1, 1]), np.array([2, 1, 1]))
    config = NystromformerConfig.from_pretrained(checkpoint)
    TASK.configure(config)
    model = TASK.head.from_pretrained(checkpoint, config=config).eval()
    batch = TASK.collate(encoded, [0, 1, 2], 0, labelled=True)
    with torch.no_grad():
        output = model(**batch)
    wanted = F.binary_cross_entropy_with_logits(
        output.logits, torch.tensor([[1.0, 0, 1], [0, 0, 0], [0, 1, 0]])
    )
    assert output.loss == pytest.approx(wanted)
    assert TASK.losses(encoded, list(output.logits.numpy())).mean() == pytest.approx(wanted)


def test_it_is_learned_and_the_card_runs(words, tmp_path, capsys):
    draw = random.Random(1)
    rows = []
    for _ in range(200):
        present = [word for word in PLANTED if draw.random() < 0.4]
        text = [*draw.choices(FILLERS, k=6), *present]
        draw.shuffle(text)
        rows.append({"text": " ".join(text), "label": present})
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = words("task=multi_label", f"data.train={path}", f"data.test={path}", "name=several")
    asked += ["task.learning_rates=[3e-3]", "task.batch_sizes=[8]", "task.epochs=10"]
    assert main(asked) == 0
    folder = tmp_path / "runs/several/multi_label"
    (result,) = [json.loads(file.read_text()) for file in folder.glob("rate*/seed-0.json")]
    assert result["dev"]["f1"] > 0.9, "a planted word tells its label"
    assert result["test"]["average_precision"] > 0.9
    told = json.loads((folder / "model/task.json").read_text())
    assert told["kind"] == "multi_label"
    assert len(told["task"]["thresholds"]) == 3
    config = json.loads((folder / "model/config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    # What evaluate writes it reads again, and transformers' pipeline gives the same probabilities.
    capsys.readouterr()
    first, second = tmp_path / "first", tmp_path / "second"
    command = ["evaluate", f"checkpoint={folder / 'model'}"]
    assert main([*command, f"file={path}", f"folder={first}"]) == 0
    assert main([*command, f"file={first / 'predictions.jsonl'}", f"folder={second}"]) == 0
    results = [json.loads((place / "result.json").read_text()) for place in (first, second)]
    assert results[0]["figures"] == results[1]["figures"]
    lines = [json.loads(line) for line in (first / "predictions.jsonl").read_text().splitlines()]
    assert [line["label"] for line in lines] == [sorted(row["label"]) for row in rows]
    (code,) = re.findall("```python\n(.*?)```", (folder / "model/README.md").read_text(), re.DOTALL)
    code = code.replace("PATH OF THIS FOLDER", str(folder / "model")).replace("a text", rows[0]["text"])
    capsys.readouterr()
    exec(code, names := {})
    assert {one["label"]: one["score"] for one in names["labels"]} == pytest.approx(
        lines[0]["probability"], abs=1e-4
    )
    printed = re.findall(r"'label': '(\w+)'", capsys.readouterr().out)
    assert sorted(printed) == lines[0]["prediction"]
