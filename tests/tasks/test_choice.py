"""Multiple choice: its layouts, what batch mates change (nothing), and a planted answer that is learned."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMultipleChoice, AutoTokenizer

from nystromformer.cli import main
from nystromformer.model.source import open_tokenizer
from nystromformer.settings.finetune import EvaluateSettings
from nystromformer.tasks.kinds.choice import ChoiceTask
from nystromformer.tasks.results import results_in
from nystromformer.tasks.task import Examples

from .conftest import FILLERS, PLANTED

TASK = ChoiceTask("choice", "multiple choice")
TEXTS = ("a context", "which", "red", "green", "blue")


def read(path: Path, rows: list[dict] | str) -> Examples:
    path.write_text(rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows))
    examples = Examples.of(TASK.read(EvaluateSettings(file=str(path))))
    assert isinstance(examples, Examples)
    return examples


@pytest.mark.parametrize("label", [1, "1", "B", "green"])
def test_label_is_a_number_a_letter_or_the_text(label, tmp_path):
    row = {"context": "a context", "question": "which", "choices": ["red", "green", "blue"], "label": label}
    examples = read(tmp_path / "own.jsonl", [row])
    assert (examples.texts, examples.labels) == ([TEXTS], [1])


def test_layouts_of_swag_race_and_quality(tmp_path):
    swag = "sent1,sent2,ending0,ending1,ending2,ending3,label\na context,which,red,green,blue,grey,2\n"
    assert read(tmp_path / "swag.csv", swag).labels == [2]
    race = {
        "article": "a context",
        "questions": ["which", "what _ is"],
        "options": [["red", "green", "blue"], ["A", "B", "C"]],
        "answers": ["A", "C"],
        "id": "high1.txt",
    }
    examples = read(tmp_path / "race.jsonl", [race])
    assert examples.labels == [0, 2]
    assert examples.texts[0] == TEXTS
    question = {"question": "which", "options": ["red", "green", "blue"], "gold_label": 3}
    quality = {"article": "a context", "questions": [{**question, "question_unique_id": "1_2"}, question]}
    examples = read(tmp_path / "quality.jsonl", [quality])
    assert (examples.labels, examples.texts[1], examples.ids) == ([2, 2], TEXTS, ["1_2", "1"])


def test_without_labels_there_are_only_predictions(tmp_path):
    row = {"context": "a context", "question": "which", "choices": ["red", "green", "blue"]}
    assert read(tmp_path / "own.jsonl", [row]).labels is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"label": 3}, "has the label '3', and 3 choices"),
        ({"label": "pink"}, "has the label 'pink', which is no number, letter or text of a choice"),
        ({"choices": ["red"]}, "choices are a list of two or more texts"),
        ({"choices": None}, "has no choices: write JSON lines of context, question, choices and label"),
        ({"context": ["a"]}, "the context is no text"),
        ({"context": "", "question": ""}, "neither a context nor a question"),
        ({"label": None}, "has no label (label, answer, gold_label)"),
    ],
)
def test_what_is_wrong_with_a_row_is_said(change, said, words, tmp_path, capsys):
    path = tmp_path / "bad.jsonl"
    row = {"context": "a context", "question": "which", "choices": ["red", "green", "blue"], "label": 0}
    path.write_text("\n".join(map(json.dumps, [row, {**row, **change}])))
    assert main(words("task=choice", f"data.train={path}")) == 2
    printed = capsys.readouterr().err
    assert f"{path}, line 2 " in printed
    assert said in printed
    assert not (tmp_path / "runs").exists()


def examples_of(counts: list[int]) -> Examples:
    draw = random.Random(1)
    texts = [
        (" ".join(draw.choices(FILLERS, k=9)), "what", *draw.choices(FILLERS, k=count)) for count in counts
    ]
    return Examples(texts, [0] * len(counts), [str(number) for number in range(len(counts))])


def test_choices_of_a_row_do_not_depend_on_its_batch_mates(checkpoint):
    tokenizer = open_tokenizer(None, str(checkpoint))
    torch.manual_seed(0)
    model = TASK.head.from_pretrained(checkpoint, num_labels=1).eval()
    encoded = TASK.encode(examples_of([4, 2, 3, 5]), tokenizer, 48)
    pad = tokenizer.pad_token_id
    with torch.no_grad():
        together = TASK.outputs(model, TASK.collate(encoded, [0, 1, 2, 3], pad, labelled=False))
        alone = [TASK.outputs(model, TASK.collate(encoded, [n], pad, labelled=False))[0] for n in range(4)]
    assert [len(row) for row in together] == [4, 2, 3, 5]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(torch.from_numpy(one), torch.from_numpy(other), rtol=1e-4, atol=1e-5)


def test_loss_of_parts_is_the_loss_of_the_whole_and_of_transformers_head(checkpoint):
    tokenizer = open_tokenizer(None, str(checkpoint))
    torch.manual_seed(0)
    model = TASK.head.from_pretrained(checkpoint, num_labels=1).eval()
    encoded = TASK.encode(examples_of([3, 3, 3]), tokenizer, 48)
    whole = TASK.collate(encoded, [0, 1, 2], tokenizer.pad_token_id, labelled=True)
    given = {name: column for name, column in whole.items() if name != "choices"}
    expected = model(**given).loss
    parts = [TASK.collate(encoded, rows, tokenizer.pad_token_id, labelled=True) for rows in ([0], [1, 2])]
    torch.testing.assert_close(TASK.loss(model, whole), expected)
    shares = [TASK.loss(model, part) * TASK.items(part) / 3 for part in parts]
    torch.testing.assert_close(sum(shares), expected)
    unlabelled = TASK.collate(encoded, [0, 1, 2], tokenizer.pad_token_id, labelled=False)
    with torch.no_grad():
        every = TASK.losses(encoded, TASK.outputs(model, unlabelled))
    torch.testing.assert_close(every.mean(), expected.detach())


def test_a_long_context_is_cut_and_never_the_choice(checkpoint, words, tmp_path, capsys):
    tokenizer = open_tokenizer(None, str(checkpoint))
    long = Examples([("the film " * 60, "a plot was", "awful", "great")], [0], ["0"])
    encoded = TASK.encode(long, tokenizer, 24)
    assert (encoded.lengths.tolist(), encoded.truncated) == ([24], 1.0)
    for row, word in zip(encoded.input_ids[0], ("awful", "great"), strict=True):
        assert tokenizer.decode(row).endswith(f"a plot was {word} [SEP]")
    path = tmp_path / "long.jsonl"
    row = {"context": "a", "question": "film " * 60, "choices": ["awful", "great"], "label": 0}
    path.write_text("\n".join([json.dumps(row)] * 20))
    assert main(words("task=choice", f"data.train={path}")) == 2
    assert "its question and a choice have 63 tokens" in capsys.readouterr().err


def test_a_submission_is_for_glue(words, capsys):
    assert main(words("task=choice", "data.train=a.jsonl", "submission=true")) == 2
    assert "submission=true is for GLUE, not for task=choice: write false" in capsys.readouterr().err


def test_planted_answer_is_learned_and_the_model_used(words, tmp_path, capsys):
    draw, rows = random.Random(0), []
    for number in range(240):
        choices = [" ".join(draw.choices(FILLERS, k=2)) for _ in range(2 + number % 3)]
        label = draw.randrange(len(choices))
        choices[label] += f" {PLANTED[1]}"
        context = " ".join(draw.choices(FILLERS, k=6))
        rows.append({"context": context, "question": "one", "choices": choices, "label": label})
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    more = ["task.epochs=5", "task.learning_rates=[5e-3]", "task.batch_sizes=[16]", "name=learn"]
    # Cut into micro-batches of another number of choices each.
    more += ["training.micro_batch_size=4", "model.hidden_dropout=0"]
    assert main(words("task=choice", f"data.train={path}", *more)) == 0
    (result,) = results_in(tmp_path / "runs/learn/choice")
    assert result["dev"]["accuracy"] > 0.9
    folder = tmp_path / "runs/learn/choice/model"
    capsys.readouterr()
    found = tmp_path / "found"
    assert main(["evaluate", f"checkpoint={folder}", f"file={path}", f"folder={found}"]) == 0
    lines = [json.loads(line) for line in (found / "predictions.jsonl").read_text().splitlines()]
    assert [line["label"] for line in lines] == [row["label"] for row in rows]
    right = sum(line["prediction"] == line["label"] for line in lines) / len(lines)
    assert right == pytest.approx(json.loads((found / "result.json").read_text())["figures"]["accuracy"])
    first = rows[0]
    model = AutoModelForMultipleChoice.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    choices = [f"one {choice}" for choice in first["choices"]]
    batch = tokenizer([first["context"]] * len(choices), choices, padding=True, return_tensors="pt")
    chances = model(**{name: column[None] for name, column in batch.items()}).logits.softmax(-1)[0]
    assert chances.tolist() == pytest.approx(lines[0]["probabilities"], abs=1e-4)
