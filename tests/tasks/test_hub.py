"""Data of the hub in the layouts of folders: rows are read as JSON lines are, classes by their names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from nystromformer.cli import main
from nystromformer.errors import UserError
from nystromformer.settings.compose import compose
from nystromformer.settings.finetune import FinetuneSettings
from nystromformer.tasks.kinds.answers import AnswerTask
from nystromformer.tasks.reading import load_splits
from nystromformer.tasks.task import Splits


def load(*words: str) -> Splits:
    settings = compose("finetune", ["checkpoint=somewhere", *words])
    assert isinstance(settings, FinetuneSettings)
    return load_splits(settings.task, settings.data)


def saved(folder: Path, parts: dict[str, list[dict[str, Any]]], features: Any, layout: str) -> Path:
    """As `save_to_disk` writes it, or as Parquet files that `load_dataset` finds."""
    found = datasets.DatasetDict(
        {name: datasets.Dataset.from_list(rows, features=features) for name, rows in parts.items()}
    )
    if layout == "disk":
        found.save_to_disk(folder)
    else:
        folder.mkdir()
        for name, rows in found.items():
            rows.to_parquet(folder / f"{name}-00000-of-00001.parquet")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("layout", ["disk", "parquet"])
def test_classes_have_their_names_and_minus_one_is_no_label(layout, tmp_path):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    rows = [{"text": f"text {number}", "label": number % 2} for number in range(12)]
    parts = {"train": rows, "validation": rows[:4], "test": [{"text": "x", "label": -1}]}
    folder = saved(tmp_path / "data", parts, features, layout)
    splits = load("task=custom", f"data.hub={folder}")
    assert splits.task.labels == ("no", "yes")
    assert (len(splits.train), len(splits.dev["dev"]), splits.test) == (12, 4, {})
    assert splits.train.labels == [number % 2 for number in range(12)]
    assert splits.origin == f"{folder}, train"
    held = load("task=custom", f"data.hub={folder}", "data.hub_splits=[train]")
    assert (len(held.train), len(held.dev["dev"])) == (10, 2)
    other = load("task=custom", f"data.hub={folder}", "data.hub_splits=[validation,train,train]")
    assert [len(part) for part in (other.train, *other.dev.values(), *other.test.values())] == [4, 12, 12]


def test_lists_of_classes_are_tags(tmp_path):
    names = ["O", "B-PER", "I-PER"]
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "tokens": datasets.Sequence(datasets.Value("string")),
            "ner_tags": datasets.Sequence(datasets.ClassLabel(names=names)),
        }
    )
    rows = [{"id": str(n), "tokens": ["Ada", "King", str(n)], "ner_tags": [1, 2, 0]} for n in range(8)]
    folder = saved(tmp_path / "data", {"train": rows}, features, "parquet")
    splits = load("task=ner", f"data.hub={folder}", "data.tags=ner_tags")
    assert splits.task.labels == ("O", "B-PER", "I-PER")
    assert splits.train.texts[0][:2] == ("Ada", "King")
    assert splits.train.labels is not None
    assert splits.train.labels[0] == [[1, 2, 0]]


def test_squads_and_races_rows_work_as_they_are(tmp_path):
    answers = {"text": datasets.Sequence(datasets.Value("string")), "answer_start": [datasets.Value("int32")]}
    text = datasets.Value("string")
    features = datasets.Features({"id": text, "context": text, "question": text, "answers": answers})
    rows = [
        {
            "id": f"q{n}",
            "context": "Ada wrote it",
            "question": "who",
            "answers": {"text": ["Ada"], "answer_start": [0]},
        }
        for n in range(5)
    ]
    rows.append({**rows[0], "id": "none", "answers": {"text": [], "answer_start": []}})
    squad = saved(tmp_path / "squad", {"train": rows, "validation": rows}, features, "parquet")
    splits = load("task=squad", f"data.hub={squad}")
    assert isinstance(splits.task, AnswerTask)
    assert splits.task.has_unanswerable
    assert splits.train.ids == [*(f"q{n}" for n in range(5)), "none"]
    assert splits.train.labels == [[(0, "Ada")]] * 5 + [[]]
    features = datasets.Features({"article": text, "question": text, "options": [text], "answer": text})
    rows = [
        {"article": f"t{n}", "question": "what", "options": ["a", "b", "c"], "answer": "C"} for n in range(4)
    ]
    race = saved(tmp_path / "race", {"train": rows, "validation": rows, "test": rows}, features, "disk")
    splits = load("task=choice", f"data.hub={race}")
    assert splits.train.labels == [2] * 4
    assert len(splits.test["test"]) == 4


def test_what_is_wrong_is_one_line(tmp_path):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.Value("string")})
    rows = [{"text": f"text {n}", "label": "ab"[n % 2]} for n in range(8)]
    rows[5]["text"] = ""
    folder = saved(tmp_path / "data", {"train": rows}, features, "disk")

    def said(*words: str, task: str = "custom") -> str:
        with pytest.raises(UserError) as error:
            load(f"task={task}", *words)
        assert len(str(error.value).splitlines()) == 1
        return str(error.value)

    (tmp_path / "empty").mkdir()
    assert "cannot be loaded as a data set" in said(f"data.hub={tmp_path / 'empty'}")
    error = said("data.hub=someone/something")
    assert "someone/something cannot be loaded from the hub" in error
    assert "connect to the network, correct data.hub" in error
    assert "has no split 'dev': write data.hub_splits=[…] with names of train" in said(
        f"data.hub={folder}", "data.hub_splits=[train,dev]"
    )
    assert f"{folder}, train, line 6 is malformed (no text in 'text')" in said(f"data.hub={folder}")
    assert "data.hub stands beside data.train" in said(f"data.hub={folder}", "data.train=a.csv")
    assert "data.hub is empty" in said("data.train=a.csv", "data.hub_config=x")
    own = "data.hub is for data of your own, not for task=sst2"
    assert own in said(f"data.hub={folder}", task="sst2")


def test_a_run_from_the_hub_is_trained_and_goes_on(words, tmp_path, capsys):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.Value("string")})
    rows = [{"text": f"a {'great' if n % 2 else 'awful'} film", "label": "ab"[n % 2]} for n in range(24)]
    folder = saved(tmp_path / "data", {"train": rows}, features, "disk")
    asked = words("task=custom", f"data.hub={folder}", "name=hub")
    assert main(asked) == 0
    (result,) = (tmp_path / "runs/hub/custom").glob("rate*/seed-0.json")
    assert json.loads(result.read_text())["data"]["origin"] == f"{folder}, train"
    capsys.readouterr()
    assert main(asked) == 0
    assert "1 of 1 seeds are done already" in capsys.readouterr().out
