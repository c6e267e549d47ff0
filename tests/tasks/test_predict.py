"""`predict`: every kind on a file with bad rows; killed at any moment, its file is that of a whole run."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pytest

from nystromformer.cli import main
from nystromformer.files import held
from nystromformer.model import NystromformerConfig
from nystromformer.model.source import open_tokenizer
from nystromformer.settings.finetune import PredictSettings
from nystromformer.tasks import parts, predict
from nystromformer.tasks.batches import ordered_batches
from nystromformer.tasks.kinds.answers import AnswerTask
from nystromformer.tasks.kinds.choice import ChoiceTask
from nystromformer.tasks.kinds.embed import EmbedTask
from nystromformer.tasks.kinds.multi_label import MultiLabelTask
from nystromformer.tasks.kinds.numbers import NumbersTask
from nystromformer.tasks.kinds.rerank import RerankTask
from nystromformer.tasks.kinds.sequence import SequenceTask
from nystromformer.tasks.kinds.tokens import TokenTask
from nystromformer.tasks.task import Examples, Task, joined, stored
from tests.tasks.conftest import FILLERS

TEXT: dict[str, Any] = {"texts": ("text",), "label": "label"}
CLASSES = SequenceTask("custom", "custom", **TEXT, values=("a", "b"), labels=("a", "b"))
KINDS: dict[str, tuple[Task, Callable[[int], dict[str, Any]], dict[str, Any]]] = {
    "classes": (CLASSES, lambda n: {"text": words(n)}, {"label": "a"}),
    "regression": (
        SequenceTask("custom", "custom", **TEXT, regression=True, metrics=("pearson",), score=("pearson",)),
        lambda n: {"text": words(n)},
        {"label": 1.5},
    ),
    "multi_label": (
        MultiLabelTask(
            "many", "many", **TEXT, values=("a", "b"), labels=("a", "b"), metrics=("f1",), score=("f1",)
        ),
        lambda n: {"text": words(n)},
        {"label": ["a"]},
    ),
    "numbers": (
        NumbersTask(
            "numbers", "numbers", ("text",), "x", labels=("x", "y"), regression=True,
            metrics=("mse",), score=("mse",),
        ),
        lambda n: {"text": words(n)},
        {"x": 1, "y": 2.5},
    ),
    "tokens": (
        TokenTask(
            "ner", "tags", labels=("O", "B-PER", "I-PER"), scheme="bio", metrics=("f1",), score=("f1",)
        ),
        lambda n: {"tokens": [words(n).split(), ["the", "film"]]},
        {"tags": None},
    ),
    "choice": (
        ChoiceTask("choice", "choice"),
        lambda n: {"context": words(n), "question": "which", "choices": ["film", "plot", "the"][: 2 + n % 2]},
        {"label": 1},
    ),
    "rerank": (
        RerankTask("rerank", "rerank", metrics=("ndcg@10", "mrr@10"), score=("ndcg@10",)),
        lambda n: {"query": "which film", "document": words(n)},
        {"label": 1},
    ),
    "answers": (
        AnswerTask("qa", "qa"),
        lambda n: {"context": words(n), "question": "which film"},
        {"answers": []},
    ),
    "embed": (EmbedTask("embed", "embedding"), lambda n: {"text": words(n)}, {}),
}  # fmt: skip


def words(number: int) -> str:
    draw = random.Random(number)
    return " ".join(draw.choices(FILLERS, k=draw.randrange(2, 30)))


def model_of(task: Task, checkpoint: Path, folder: Path) -> Path:
    """A model without training, in the layout that `finetune` writes."""
    config = NystromformerConfig.from_pretrained(checkpoint)
    task.configure(config)
    task.head(config).save_pretrained(folder)
    open_tokenizer(None, str(checkpoint)).save_pretrained(folder)
    (folder / "task.json").write_text(json.dumps({**stored(task), "max_length": 40}))
    return folder


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_line_a_row_in_order_and_bad_rows_are_told(
    kind, checkpoint, tmp_path, capsys, small_chunks
):
    task, row, _ = KINDS[kind]
    model = model_of(task, checkpoint, tmp_path / "model")
    rows: list[Any] = [json.dumps({**row(number), "id": f"n{number}"}) for number in range(20)]
    rows[3] = '{"text": '
    rows[4] = "[1]"
    rows[9] = json.dumps({"id": "empty"})
    rows[12] = json.dumps(row(12))  # its number is its name
    file = tmp_path / "rows.jsonl"
    content = [text.encode() for text in rows]
    content[15] = content[15].replace(b"the", b"th\xff", 1).replace(b"film", b"fil\xff", 1)
    assert b"\xff" in content[15]
    file.write_bytes(b"\n".join(content) + b"\n")
    capsys.readouterr()
    command = ["predict", f"checkpoint={model}", "format=jsonl"]
    assert main([*command, f"file={file}", f"folder={tmp_path / 'out'}"]) == 0
    printed = capsys.readouterr()
    assert "4 of 20 rows could not be read:\n" in printed.err
    assert f"  {file}, line 4 is malformed (no JSON: " in printed.err
    found = lines_of(tmp_path / "out/predictions.jsonl")
    bad = {"3", "4", "9", "15"}
    names = [str(n) if str(n) in {*bad, "12"} else f"n{n}" for n in range(20)]
    assert [line["id"] for line in found] == names
    for number, line in enumerate(found):
        assert set(line) - {"id"} <= (
            {"error"} if str(number) in bad else {n.removesuffix(".*") for n in task.told}
        )
        assert str(number) not in bad or f"{file}, line {number + 1} " in line["error"]
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert (result["examples"], result["errors"]) == (16, 4)
    assert "figures" not in result
    # The same predictions as without the bad rows, whatever stood beside them in a batch.
    good = tmp_path / "good.jsonl"
    good.write_bytes(b"".join(content[n] + b"\n" for n in range(20) if str(n) not in bad))
    assert main([*command, f"file={good}", f"folder={tmp_path / 'good'}", "batch_size=1"]) == 0
    alone = lines_of(tmp_path / "good/predictions.jsonl")
    for one, other in zip([line for line in found if "error" not in line], alone, strict=True):
        assert _close({**one, "id": ""}, {**other, "id": ""})


@pytest.mark.parametrize("kind", KINDS)
def test_a_chunk_of_bad_rows_alone_is_told_like_others(kind, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "MOST_ROWS", 2)
    task, row, _ = KINDS[kind]
    model = model_of(task, checkpoint, tmp_path / "model")
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join([json.dumps(row(0)), "{", "{", "{", json.dumps(row(1))]) + "\n")
    command = ["predict", f"checkpoint={model}", f"file={file}", f"folder={tmp_path / 'out'}", "format=jsonl"]
    assert main(command) == 0
    assert ["error" in line for line in lines_of(tmp_path / "out/predictions.jsonl")] == [
        False,
        True,
        True,
        True,
        False,
    ]


def _words(row: dict[str, Any]) -> list[str]:
    return [word for sentence in row.get("tokens", ()) for word in sentence]


def _close(one: Any, other: Any) -> bool:
    if isinstance(one, float):
        return one == pytest.approx(other, abs=3e-6, rel=1e-4)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_close(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_close, one, other))
    return one == other


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "embed"])
def test_with_labels_the_figures_are_those_of_evaluate_and_a_table_says_the_same(
    kind, checkpoint, tmp_path, capsys, small_chunks
):
    task, row, label = KINDS[kind]
    model = model_of(task, checkpoint, tmp_path / "model")
    file = tmp_path / "rows.jsonl"
    rows = [row(number) for number in range(20)]
    for number, content in enumerate(rows):
        content |= label
        if kind == "tokens":
            content["tags"] = [["O"] * len(sentence) for sentence in content["tokens"]]
            content["tags"][0][:2] = ["B-PER", "I-PER"]
        if kind in ("regression", "numbers"):
            content["label" if kind == "regression" else "x"] = number
    file.write_text("".join(json.dumps(content) + "\n" for content in rows))
    command = [f"checkpoint={model}", f"file={file}"]
    assert main(["evaluate", *command, f"folder={tmp_path / 'evaluated'}"]) == 0
    evaluated = capsys.readouterr().out.split("\n  ")[1:]
    results = [json.loads((tmp_path / "evaluated/result.json").read_text())]
    for form in ("jsonl", "tsv", "own"):
        place = tmp_path / form
        assert main(["predict", *command, f"folder={place}", f"format={form}"]) == 0
        assert capsys.readouterr().out.split("\n  ")[1].split("\n")[0] == evaluated[0].split("\n")[0]
        results.append(
            {k: v for k, v in json.loads((place / "result.json").read_text()).items() if k != "errors"}
        )
        drawn = [*task.pictures, *["reliability.png"] * ("reliability" in results[0])]
        assert sorted(path.name for path in place.iterdir() if path.name not in drawn) == sorted(
            ["progress.json", "result.json", task.predictions if form == "own" else f"predictions.{form}"]
            + ["errors.jsonl"] * (form == "own")
        )
    assert all(result == results[0] for result in results)
    assert results[0]["figures"]
    # With probabilities there is a picture of them: of every example, word, or label of an example.
    many = {"classes": 20, "multi_label": 40, "choice": 20, "tokens": sum(map(len, map(_words, rows)))}
    assert sum(results[0].get("reliability", {}).get("counts", [])) == many.get(kind, 0)
    assert (tmp_path / "evaluated/reliability.png").exists() == (kind in many)
    own = task.predictions
    assert (tmp_path / "own" / own).read_bytes() == (tmp_path / "evaluated" / own).read_bytes()
    table = pandas.read_csv(tmp_path / "tsv/predictions.tsv", sep="\t", dtype=str, keep_default_na=False)
    names = [name for name in task.told if not name.endswith(".*")]
    objects = [f"{name[:-2]}.{label}" for name in task.told if name.endswith(".*") for label in task.labels]
    assert sorted(table.columns) == sorted(["id", *names, *objects, "error"])
    for (_, cells), line in zip(
        table.iterrows(), lines_of(tmp_path / "jsonl/predictions.jsonl"), strict=True
    ):
        for name in (*names, *objects):
            first, _, rest = name.partition(".")
            value = line.get(first, "")
            value = value[rest] if rest else value
            assert cells[name] == (value if isinstance(value, str) else json.dumps(value))


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("tokens", {"tokens": []}),
        ("tokens", {"tokens": [[], []]}),
        ("tokens", {"tokens": ["a", "\ud800"]}),
        ("choice", {"context": "a film", "questions": []}),
        ("choice", {"context": "a film", "question": "\ud800", "choices": ["\ud800", "b"], "id": "\ud800"}),
        ("answers", {"context": "film \ud800", "question": "\ud800", "id": "\ud800"}),
        ("classes", {"text": "\ud800", "id": "\ud800"}),
    ],
)
def test_no_row_goes_missing(kind, content, checkpoint, tmp_path, capsys):
    task, row, _ = KINDS[kind]
    model = model_of(task, checkpoint, tmp_path / "model")
    file = tmp_path / "rows.jsonl"
    hole = b"\0" * 60  # as a crash leaves in a file that was written to
    rows = [json.dumps(row(0)), json.dumps(content), json.dumps(row(2))]
    file.write_bytes("\n".join(rows).encode() + b"\n" + hole + b"\n" + json.dumps(row(4)).encode())
    assert main(["predict", f"checkpoint={model}", f"file={file}", f"folder={tmp_path / 'out'}"]) == 0
    found = lines_of(tmp_path / "out/predictions.jsonl")
    assert [line["id"] for line in found] == ["0", content.get("id", "1"), "2", "3", "4"]
    assert ["error" in line for line in found][2:] == [False, True, False]


def test_labels_can_be_left_unread(checkpoint, tmp_path, capsys):
    model = model_of(CLASSES, checkpoint, tmp_path / "model")
    file = tmp_path / "rows.csv"
    file.write_text("text,label\na film,a\nthe plot,unknown\nthe plot,\n")
    command = ["predict", f"checkpoint={model}", f"file={file}"]
    assert main([*command, f"folder={tmp_path / 'one'}"]) == 0
    found = lines_of(tmp_path / "one/predictions.jsonl")
    assert ["error" in line for line in found] == [False, True, True]
    assert "line 3 has the label 'unknown', which is none of 'a', 'b'" in found[1]["error"]
    assert main([*command, f"folder={tmp_path / 'two'}", "figures=false"]) == 0
    assert [line["prediction"] in "ab" for line in lines_of(tmp_path / "two/predictions.jsonl")] == [True] * 3
    assert "figures" not in json.loads((tmp_path / "two/result.json").read_text())


def test_a_cell_that_may_be_many_rows_is_one_bad_row(checkpoint, tmp_path, capsys):
    model = model_of(CLASSES, checkpoint, tmp_path / "model")
    file = tmp_path / "rows.tsv"
    file.write_text('text\tnote\na film\tx\nthe\t"plot\nthe\tplot\nthe\tplot"\na film\ty\n')
    assert main(["predict", f"checkpoint={model}", f"file={file}", f"folder={tmp_path / 'out'}"]) == 0
    found = lines_of(tmp_path / "out/predictions.jsonl")
    assert ["error" in line for line in found] == [False, True, False]
    assert "lines 3 to 5" in found[1]["error"]


def test_where_rows_stop_it_nothing_is_written(checkpoint, tmp_path, capsys):
    model = model_of(CLASSES, checkpoint, tmp_path / "model")
    file = tmp_path / "rows.csv"
    file.write_text("text\na film\nthe,plot\n")
    command = ["predict", f"checkpoint={model}", f"file={file}", f"folder={tmp_path / 'out'}"]
    assert main([*command, "malformed_rows=stop"]) == 2
    assert f"{file}, line 3 is malformed (2 columns, where there should be 1)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_example_that_has_no_room_is_told_and_the_others_are_predicted(checkpoint, tmp_path, capsys):
    model = model_of(KINDS["choice"][0], checkpoint, tmp_path / "model")
    rows = [KINDS["choice"][1](number) for number in range(5)]
    rows[2]["question"] = "film " * 60
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["predict", f"checkpoint={model}", f"file={file}", f"folder={tmp_path / 'out'}"]) == 0
    found = lines_of(tmp_path / "out/predictions.jsonl")
    assert ["error" in line for line in found] == [False, False, True, False, False]
    assert "example 2 cannot be read" in found[2]["error"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("file", "holds predictions of another file than file="),
        ("checkpoint", "holds predictions of another model than checkpoint="),
        ("batch_size=3", "was begun with batch_size=256, not 3"),
        ("text=note", "holds predictions of another model than"),
        ("precision=bf16", "was begun with precision=float32, not bf16"),
    ],
)
def test_a_change_is_told_and_harms_nothing(change, said, checkpoint, tmp_path, capsys):
    model = model_of(CLASSES, checkpoint, tmp_path / "model")
    file = tmp_path / "rows.csv"
    file.write_text("text,note\na film,b\nthe plot,c\n")
    command = ["predict", f"checkpoint={model}", f"file={file}", f"folder={tmp_path / 'out'}"]
    assert main(command) == 0
    whole = (tmp_path / "out/predictions.jsonl").read_bytes()
    if change == "file":
        file.write_text("text,note\na film,b\nthe plot,d\n")
    elif change == "checkpoint":
        model_of(CLASSES, checkpoint, model)
    capsys.readouterr()
    assert main([*command, *([change] if "=" in change else [])]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / 'out'} {said}" in error
    assert "write folder=OTHER, or delete" in error
    assert len(error.splitlines()) == 1
    assert (tmp_path / "out/predictions.jsonl").read_bytes() == whole


def test_what_is_done_is_not_done_again(checkpoint, tmp_path, capsys, monkeypatch):
    model = model_of(CLASSES, checkpoint, tmp_path / "model")
    file = tmp_path / "rows.csv"
    file.write_text("text,label\na film,a\nthe plot,b\nthe,plot,b\n")
    command = ["predict", f"checkpoint={model}", f"file={file}", f"folder={tmp_path / 'out'}"]
    assert main(command) == 0
    first = capsys.readouterr()
    monkeypatch.setattr(predict, "open_model", None)
    assert main(command) == 0
    second = capsys.readouterr()
    assert second.out == first.out
    assert second.err == first.err[-len(second.err) :]


def test_a_folder_in_use_names_its_user(checkpoint, tmp_path, capsys):
    model = model_of(CLASSES, checkpoint, tmp_path / "model")
    file = tmp_path / "rows.csv"
    file.write_text("text\na film\n")
    command = ["predict", f"checkpoint={model}", f"file={file}", f"folder={tmp_path / 'out'}"]
    with held(tmp_path / "out/.lock", "", ""):
        assert main(command) == 2
    assert f"is in use by process {os.getpid()} on" in capsys.readouterr().err
    assert main(command) == 0


def test_batches_hold_so_many_tokens_and_no_more(checkpoint):
    tokenizer = open_tokenizer(None, str(checkpoint))
    task, row, _ = KINDS["choice"]
    texts = [(r["context"], r["question"], *r["choices"]) for r in map(row, range(40))]
    encoded = task.encode(Examples(texts, None, [str(n) for n in range(40)]), tokenizer, 48)
    seen: list[int] = []
    for rows, batch in ordered_batches(encoded, 8, lambda e, r: task.collate(e, r, 0, labelled=False), 300):
        assert len(rows) <= 8
        assert batch["input_ids"].numel() <= 300 or len(rows) == 1
        seen += rows
    assert sorted(seen) == list(range(40))
    assert sum(len(ids) == 3 for ids in encoded.input_ids) == 20


def test_parts_of_one_example_are_the_whole(test_data):
    task = KINDS["tokens"][0]
    settings = PredictSettings(file=str(test_data / "ner/wikiann_en_dev.conll"), figures=False)
    found = [task.collected.of([row]) for row in task.read(settings)]
    whole = task.collected.of(task.read(settings))
    assert len(whole) == len(found) == 10_000
    assert joined(found) == whole


# --- kills --------------------------------------------------------------------------------------------
