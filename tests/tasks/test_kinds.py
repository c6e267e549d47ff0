"""A kind of task is one file and one line: this file is one, trained and evaluated through the commands."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nystromformer.cli import main
from nystromformer.data.layout import Batch
from nystromformer.model import NystromformerForTokenClassification
from nystromformer.model.source import open_tokenizer
from nystromformer.settings import TrainingSettings
from nystromformer.settings.finetune import (
    KINDS,
    EvaluateSettings,
    FinetuneSettings,
    TaskDataSettings,
    TaskSettings,
)
from nystromformer.tasks.kinds.sequence import SequenceTask
from nystromformer.tasks.reading import own_splits, usable_rows
from nystromformer.tasks.row_files import Asked, Fault, Row, Unusable, to_learn
from nystromformer.tasks.table_files import TableFile
from nystromformer.tasks.task import (
    Answered,
    Encoded,
    Examples,
    Found,
    Outputs,
    Splits,
    Task,
    from_stored,
    padded,
    stored,
)
from nystromformer.tasks.training import Finetuning
from nystromformer.training.devices import accelerator_of
from nystromformer.training.optimizer import build_optimizer
from nystromformer.training.step import train_step
from tests.tasks.conftest import FILLERS, PLANTED

IGNORED = -100


@dataclass
class Words(Encoded):
    firsts: list[list[int]]
    """Place of each word's first piece."""


@dataclass(frozen=True)
class Tagging(Task):
    """A tag for each word of a list."""

    text: str = "text"
    label: str = "label"

    head: ClassVar[type[PreTrainedModel]] = NystromformerForTokenClassification
    pipeline: ClassVar[str] = "token-classification"

    @classmethod
    def complaints(cls, settings: FinetuneSettings) -> Iterator[str]:
        if settings.task.regression:
            yield "task.regression=true is not for tags: write false"

    @classmethod
    def load(cls, settings: TaskSettings, data: TaskDataSettings) -> Splits:
        task = cls(settings.name, "tags", text=data.text, label=data.label)
        train = task.opened(to_learn(data, "train"))
        tags = {tag for row in train.rows() for tag in row.cells[task.label]}
        task = replace(task, labels=tuple(sorted(tags)))
        return own_splits(task, data)

    def opened(self, asked: Asked) -> TableFile:
        return TableFile(asked, (self.text, self.label) if asked.is_to_learn else (self.text,))

    def is_labelled(self, file: TableFile) -> bool:
        return file.has(self.label)

    def rows(self, file: TableFile, *, labelled: bool) -> Iterator[Found | Fault]:
        return usable_rows(file, lambda row: tuple(row.cells[self.text]), self._tags if labelled else None)

    def _tags(self, row: Row) -> list[int]:
        tags = row.cells[self.label]
        if len(tags) != len(row.cells[self.text]):
            raise Unusable(f"has {len(tags)} tags for {len(row.cells[self.text])} words")
        return [self.labels.index(tag) for tag in tags]

    def encode(self, examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded:
        ids, firsts = [], []
        for words in examples.texts:
            row = tokenizer(list(words), is_split_into_words=True, truncation=True, max_length=max_length)
            places = row.word_ids()
            ids.append(row["input_ids"])
            firsts.append([places.index(word) for word in range(len(words)) if word in places])
        lengths = np.array([len(row) for row in ids])
        return Words(ids, None, examples.labels, lengths, lengths, firsts)

    def collate(self, encoded: Encoded, rows: Sequence[int], pad_token_id: int, *, labelled: bool) -> Batch:
        assert isinstance(encoded, Words)
        batch = padded(encoded, rows, pad_token_id)
        if labelled:
            assert encoded.labels is not None
            batch["labels"] = torch.full_like(batch["input_ids"], IGNORED)
            for number, row in enumerate(rows):
                batch["labels"][number, encoded.firsts[row]] = torch.tensor(encoded.labels[row])
        return batch

    def items(self, batch: Batch) -> int:
        return int((batch["labels"] != IGNORED).sum())

    def _of_words(self, encoded: Encoded, outputs: Outputs) -> Iterator[np.ndarray]:
        assert isinstance(encoded, Words)
        for logits, firsts in zip(outputs, encoded.firsts, strict=True):
            yield logits[firsts]

    def predict(self, encoded: Encoded, outputs: Outputs) -> list[list[int]]:
        return [logits.argmax(-1).tolist() for logits in self._of_words(encoded, outputs)]

    def losses(self, encoded: Encoded, outputs: Outputs) -> torch.Tensor:
        logits = torch.from_numpy(np.concatenate(list(self._of_words(encoded, outputs))))
        tags = torch.tensor([tag for tags in encoded.labels or [] for tag in tags])
        return F.cross_entropy(logits, tags, reduction="none")

    def figures(self, labels: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
        pairs = [
            one == other
            for tags, found in zip(labels, predictions, strict=True)
            for one, other in zip(tags, found, strict=True)
        ]
        return self.with_score({"accuracy": sum(pairs) / len(pairs)})

    def records(self, found: Answered) -> Iterator[dict[str, Any]]:
        for words, tags in zip(found.examples.texts, found.predictions, strict=True):
            yield {"text": words, "prediction": [self.labels[tag] for tag in tags]}


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(KINDS, "tagging", f"{__name__}:Tagging")


def tagged(count: int) -> list[dict[str, list[str]]]:
    """Sentences of unlike length, in which three words have a tag of their own."""
    draw = random.Random(3)
    tags = {word: word.upper() for word in PLANTED}
    rows = []
    for _ in range(count):
        words = draw.choices([*FILLERS, *PLANTED], k=draw.randrange(2, 14))
        rows.append({"text": words, "label": [tags.get(word, "O") for word in words]})
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_kind_from_outside_trains_and_evaluates(registered, words, tmp_path, capsys):
    train = write(tmp_path / "train.jsonl", tagged(160))
    asked = words("task=custom", "task.kind=tagging", f"data.train={train}", "name=tags")
    asked += ["task.learning_rates=[3e-3]", "task.batch_sizes=[8]", "task.epochs=3"]
    assert main(asked) == 0
    printed = capsys.readouterr().out
    assert "train: 144 examples; AWFUL" in printed
    folder = tmp_path / "runs/tags/custom"
    (result,) = [json.loads(path.read_text()) for path in folder.glob("rate*/seed-0.json")]
    assert result["dev"]["accuracy"] > 0.95, "a planted word tells its tag"
    assert set(result["data"]["train"]["classes"]) == {"AWFUL", "GREAT", "O", "PLAIN"}
    card = (folder / "model/README.md").read_text()
    assert "pipeline_tag: token-classification" in card
    assert json.loads((folder / "model/task.json").read_text())["kind"] == "tagging"
    # The same model on a file: figures where it has tags, predictions in its order all the same.
    rows = tagged(200)[160:]
    for content, figures in ((rows, True), ([{"text": row["text"]} for row in rows], False)):
        file = write(tmp_path / "more.jsonl", content)
        place = tmp_path / "seen"
        assert main(["evaluate", f"checkpoint={folder / 'model'}", f"file={file}", f"folder={place}"]) == 0
        lines = [json.loads(line) for line in (place / "predictions.jsonl").read_text().splitlines()]
        assert [line["text"] for line in lines] == [row["text"] for row in rows]
        right = sum(
            one == other
            for line, row in zip(lines, rows, strict=True)
            for one, other in zip(line["prediction"], row["label"], strict=True)
        )
        total = sum(len(row["text"]) for row in rows)
        assert right / total > 0.95
        told = json.loads((place / "result.json").read_text())
        assert ("figures" in told) == figures
        assert not figures or told["figures"]["accuracy"] == right / total


def test_its_mistakes_are_one_line(registered, words, tmp_path, capsys):
    rows = tagged(20)
    rows[3]["label"].pop()
    train = write(tmp_path / "train.jsonl", rows)
    asked = words("task=custom", "task.kind=tagging", f"data.train={train}")
    assert main(asked) == 2
    assert f"{train}, line 4 has {len(rows[3]['label'])} tags for" in capsys.readouterr().err
    assert main([*asked, "task.regression=true"]) == 2
    assert "task.regression=true is not for tags: write false" in capsys.readouterr().err
    assert main([*asked, "task.kind=parsing"]) == 2
    assert f"task.kind='parsing' is unknown: write one of {', '.join(KINDS)}" in capsys.readouterr().err


def test_micro_batches_add_up_where_rows_have_unlike_counts_of_labels(checkpoint, tmp_path):
    """The loss is the mean over the labels of the whole batch, not the mean of the parts' means."""
    rows = [row for row in tagged(40) if len(row["text"]) < 3 or len(row["text"]) > 10][:6]
    task = Tagging("custom", "tags", labels=("AWFUL", "GREAT", "O", "PLAIN"))
    examples = Examples(
        [tuple(row["text"]) for row in rows],
        [[task.labels.index(tag) for tag in row["label"]] for row in rows],
        [str(number) for number in range(6)],
    )

    encoded = task.encode(examples, open_tokenizer(None, str(checkpoint)), 48)
    recipe = TrainingSettings(learning_rate=1e-2, warmup_steps=0, gradient_clipping=None)
    found = []
    for parts in ([[0, 1, 2, 3, 4, 5]], [[0, 1], [2, 3], [4, 5]], [[0], [1, 2, 3, 4], [5]]):
        torch.manual_seed(0)
        model = task.head.from_pretrained(checkpoint, num_labels=4, hidden_dropout_prob=0.0).eval()
        done = train_step(
            model,
            Finetuning(task, model.config),
            build_optimizer(model, recipe),
            [task.collate(encoded, part, 0, labelled=True) for part in parts],
            accelerator_of(cpu=True),
            torch.autocast("cpu", enabled=False),
            gradient_clipping=None,
        )
        found.append((float(done.losses[0]), float(done.gradient_norm)))
    assert len({task.items(task.collate(encoded, [row], 0, labelled=True)) for row in range(6)}) > 1
    for one in found[1:]:
        assert one == pytest.approx(found[0], rel=1e-4)


def test_a_task_is_stored_with_its_kind(registered):
    tagging = Tagging("custom", "tags", labels=("a", "b"), text="words")
    sequence = SequenceTask("custom", "custom", ("text",), "label", labels=("a", "b"))
    for task in (tagging, sequence):
        assert from_stored(json.loads(json.dumps(stored(task)))) == task
    older = {"task": stored(sequence)["task"]}
    assert from_stored(older) == sequence, "what was written before there were kinds"


def test_a_file_of_any_size_is_read_in_parts(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "".join(f"text {number},{'ab'[number % 2]}\n" for number in range(25)))
    task = SequenceTask("custom", "custom", ("text",), "label", ("a", "b"), labels=("a", "b"))
    settings = EvaluateSettings(file=str(path))
    whole = Examples.of(task.read(settings))
    rows = task.read(settings)
    parts = [Examples.of(islice(rows, 10)) for _ in range(3)]
    assert [len(part) for part in parts] == [10, 10, 5]
    assert [text for part in parts for text in part.texts] == whole.texts
    logits = np.random.default_rng(0).normal(size=(25, 2)).astype(np.float32)
    text = task.written(Answered(whole, [], list(logits)))
    pieces, first = [], 0
    for part in parts:
        found = Answered(part, [], list(logits[first : first + len(part)]))
        pieces.append(task.written(found, first=first))
        first += len(part)
    assert "".join(pieces) == text
