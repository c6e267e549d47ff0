"""Labels as users write them: the classes they make, their order, and the shape in which a head gets them."""

from __future__ import annotations

import json
from decimal import Decimal
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nystromformer.errors import UserError
from nystromformer.model.source import open_tokenizer
from nystromformer.settings.finetune import TaskDataSettings, TaskSettings
from nystromformer.tasks.batches import ordered_batches
from nystromformer.tasks.kinds.sequence import custom_splits, custom_task
from nystromformer.tasks.reading import in_order, number_of
from nystromformer.tasks.task import Splits


def read(path, *, regression: bool = False, **more) -> Splits:
    data = TaskDataSettings(train=str(path), dev=str(path), **more)
    task = TaskSettings("custom", regression=regression, metric="pearson" if regression else "accuracy")
    return custom_splits(custom_task(task, data), data)


def as_csv(folder, labels: list[str]):
    path = folder / "a.csv"
    path.write_text("text,label\n" + "".join(f'a text,"{label}"\n' for label in labels), encoding="utf-8")
    return path


def as_json(folder, labels: list):
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps({"text": "a text", "label": label}) + "\n" for label in labels))
    return path


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["10", "9", "-1"], ["-1", "9", "10"]),
        (["10.0", "9.5", "1e3", "+2", ".5"], [".5", "+2", "9.5", "10.0", "1e3"]),
        (["10", "9", "①"], ["10", "9", "①"]),
        (["²", "10", "9"], ["10", "9", "²"]),
        (["--1", "2", "10"], ["--1", "10", "2"]),
        (["-", "2", "10"], ["-", "10", "2"]),
        (["１", "2", "10"], ["10", "2", "１"]),
        (["1_0", "9"], ["1_0", "9"]),
        (["nan", "9", "10"], ["10", "9", "nan"]),
        (["inf", "9", "10"], ["10", "9", "inf"]),
        (["1", "1.0", "+1"], ["+1", "1", "1.0"]),
        ([" 1", "1 ", "10", "2"], ["1", "2", "10"]),
        (["\N{LATIN SMALL LETTER E}\N{COMBINING ACUTE ACCENT}", "é", "b"], ["b", "é"]),
        (["٣", "2", "10"], ["10", "2", "٣"]),
        (["0x10", "9"], ["0x10", "9"]),
    ],
    ids=lambda value: None,
)
def test_classes_are_sorted_as_numbers_only_where_all_are(labels, classes, tmp_path):
    splits = read(as_csv(tmp_path, labels))
    assert list(splits.task.labels) == classes
    assert len(splits.train) == len(labels)


@given(st.lists(st.text(max_size=3) | st.text("0123456789+-.eE①²１_ ", max_size=5), min_size=1, unique=True))
@settings(max_examples=100, deadline=None)
def test_any_labels_have_one_order(labels):
    ordered = in_order(labels)
    assert sorted(labels) == sorted(ordered)
    assert in_order(reversed(labels)) == ordered
    if all(number_of(label) is not None for label in labels):
        values = [Decimal(label) for label in ordered]
        assert values == sorted(values)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_is_a_number(number):
    assert number_of(repr(number)) == number
    assert number_of(f"{number:.3f}") == float(f"{number:.3f}")


@pytest.mark.parametrize(
    "text", ["nan", "inf", "-inf", "1e999", "１", "①", "1_0", "1,5", "true", "0x1", "--1", "1 2"]
)
def test_what_is_no_number_to_learn_is_named(text, tmp_path):
    path = as_csv(tmp_path, ["1.5", text])
    with pytest.raises(UserError, match=r"line 3 has .* in 'label', which is no number: mend the row"):
        read(path, regression=True)
    splits = read(path, regression=True, malformed_rows="skip")
    assert splits.train.labels == [1.5]
    assert len(splits.skipped) == 2


def test_numbers_of_every_writing_are_learned(tmp_path):
    splits = read(as_csv(tmp_path, ["1.5", "+1", " 1", "1e3", "-.5", "2."]), regression=True)
    assert splits.train.labels == [1.5, 1, 1, 1000, -0.5, 2]
    splits = read(as_json(tmp_path, [1, 1.5, "2", [3], ["4"], 1e3]), regression=True)
    assert splits.train.labels == [1, 1.5, 2, 3, 4, 1000]


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([True, False], ("false", "true")),
        ([1, 1.0, "1", 0], ("0", "1")),  # JSON has one kind of number
        ([10, 9, 0.5], ("0.5", "9", "10")),
        ([["b"], "a", ["a"]], ("a", "b")),
        (["①", "a"], ("a", "①")),
        ([[1], [0], 1], ("0", "1")),
    ],
    ids=lambda value: None,
)
def test_classes_of_json_lines(labels, classes, tmp_path):
    assert read(as_json(tmp_path, labels)).task.labels == classes


@pytest.mark.parametrize("label", [None, "", [], [1, 0, 1], {"a": 1}, [["a"]], [None]], ids=json.dumps)
@pytest.mark.parametrize("regression", [False, True], ids=["classes", "numbers"])
def test_json_labels_that_are_none(label, regression, tmp_path):
    path = as_json(tmp_path, [1, label, 0])
    with pytest.raises(UserError, match=r"line 2 (is malformed|has no label)"):
        read(path, regression=regression)
    splits = read(path, regression=regression, malformed_rows="skip")
    assert splits.train.labels == ([1, 0])
    assert len(splits.skipped) == 2


@pytest.mark.parametrize("written", [as_csv, as_json], ids=["csv", "json"])
@pytest.mark.parametrize("regression", [False, True], ids=["classes", "numbers"])
def test_a_head_gets_one_label_a_row(written, regression, tmp_path, checkpoint):
    """(B,), whole numbers for classes and single-precision ones for regression."""
    labels = ["2", "10", "-3"] if written is as_csv else [2, [10], "-3"]
    splits = read(written(tmp_path, labels), regression=regression)
    tokenizer = open_tokenizer(None, str(checkpoint))
    encoded = splits.task.encode(splits.train, tokenizer, 16)
    batch = splits.task.collate(encoded, [2, 0, 1], 0, labelled=True)
    expected = torch.tensor([-3.0, 2.0, 10.0]) if regression else torch.tensor([0, 1, 2])
    assert batch["labels"].dtype == expected.dtype
    assert torch.equal(batch["labels"], expected)
    unlabelled = partial(splits.task.collate, pad_token_id=0, labelled=False)
    assert all("labels" not in batch for _, batch in ordered_batches(encoded, 2, unlabelled))


def test_many_classes_make_a_short_message(tmp_path):
    train = as_csv(tmp_path, [f"class {number}" for number in range(900)])
    dev = tmp_path / "dev.csv"
    dev.write_text("text,label\na,b\n")
    data = TaskDataSettings(train=str(train), dev=str(dev))
    with pytest.raises(UserError, match=r"which is none of .* and 890 more: mend the row") as caught:
        custom_splits(custom_task(TaskSettings("custom"), data), data)
    assert len(str(caught.value)) < 600
