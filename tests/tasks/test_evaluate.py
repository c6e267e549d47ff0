"""What `evaluate` writes, `evaluate` and pandas read again, whatever stands in texts and class names."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nystromformer.cli import main
from nystromformer.data.documents import clean
from nystromformer.files import write_atomically
from nystromformer.model import NystromformerConfig
from nystromformer.model import NystromformerForSequenceClassification as Classifier
from nystromformer.model.source import open_tokenizer
from nystromformer.settings.finetune import EvaluateSettings
from nystromformer.tasks.benchmarks import TASKS
from nystromformer.tasks.kinds.sequence import SequenceTask as Task
from nystromformer.tasks.kinds.sequence import with_labels
from nystromformer.tasks.task import Answered, Examples

ANYTHING = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.text(
    "\"'\\,;\t|\n\r =$x", max_size=6
)
CLEANED = ANYTHING.map(clean)
CLASSES = st.lists(CLEANED.filter(bool), min_size=2, max_size=4, unique=True)
COLUMNS = st.sampled_from(["text", "index", "prediction", "p(a)", 'my "note"', "a\tb"])
NASTY = ["a\tb", 'say "no"', "two\nlines", "NA", "$\\frac{1}$", "①", "=1+1", "名前", " , ", "'"]


def read_file(settings: EvaluateSettings, task: Task) -> Examples:
    return Examples.of(task.read(settings))


def custom(labels: list[str], columns: tuple[str, ...] = ("text",), label: str = "label") -> Task:
    return with_labels(Task("custom", "custom", columns, label), tuple(labels))


def write_predictions(path: Path, task: Task, examples: Examples, logits: np.ndarray) -> None:
    write_atomically(path, task.written(Answered(examples, [], list(logits))))


@given(st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_predictions_are_read_again(tmp_path, data):
    names = data.draw(st.lists(COLUMNS, min_size=2, max_size=3, unique=True))
    task = custom(data.draw(CLASSES), tuple(names[1:]), names[0])
    pair = st.tuples(*[CLEANED] * len(task.texts)).filter(any)
    texts = data.draw(st.lists(pair, min_size=1, max_size=4))
    labels = [float(data.draw(st.integers(0, task.num_labels - 1))) for _ in texts]
    labelled = data.draw(st.booleans())
    examples = Examples(texts, labels if labelled else None, [])
    logits = np.random.default_rng(len(texts)).normal(size=(len(texts), task.num_labels))
    path = tmp_path / "predictions.tsv"
    write_predictions(path, task, examples, logits)
    again = read_file(EvaluateSettings(file=str(path)), task)
    assert (again.texts, again.labels) == (examples.texts, examples.labels)
    table = pandas.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    for column, cells in zip(task.texts, zip(*texts, strict=True), strict=True):
        assert table[column].tolist() == list(cells)
    answers = [task.labels[number] for number in logits.argmax(1)]
    assert table.iloc[:, 1].tolist() == answers
    if labelled:
        assert table[task.label].tolist() == [task.labels[int(label)] for label in labels]
    # The answers can be labels too.
    column = replace(task, label=table.columns[1])
    chosen = read_file(EvaluateSettings(file=str(path), label=column.label), column)
    assert chosen.labels == logits.argmax(1).tolist()


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=5))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_numbers_are_read_again_to_the_last_digit(tmp_path, labels):
    task = Task("custom", "custom", ("text",), "label", regression=True)
    path = tmp_path / "predictions.tsv"
    write_predictions(path, task, Examples([("x",)] * len(labels), labels, []), np.ones((len(labels), 1)))
    assert read_file(EvaluateSettings(file=str(path)), task).labels == labels


def model_of(task: Task, checkpoint: Path, folder: Path) -> Path:
    """A model without training, in the layout that `finetune` writes."""
    config = NystromformerConfig.from_pretrained(checkpoint, num_labels=task.num_labels)
    Classifier(config).save_pretrained(folder)
    open_tokenizer(None, str(checkpoint)).save_pretrained(folder)
    (folder / "task.json").write_text(json.dumps({"task": asdict(task), "max_length": 32}))
    return folder


def result_of(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def test_evaluating_what_was_evaluated_gives_the_same_figures(checkpoint, tmp_path, capsys):
    model = model_of(custom([clean(name) for name in NASTY]), checkpoint, tmp_path / "model")
    rows = [{"text": f"{text} a film", "label": name} for text in NASTY for name in NASTY]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = tmp_path / "first", tmp_path / "second"
    command = ["evaluate", f"checkpoint={model}"]
    assert main([*command, f"file={file}", f"folder={first}"]) == 0
    assert main([*command, f"file={first / 'predictions.tsv'}", f"folder={second}"]) == 0
    assert result_of(first)["figures"] == result_of(second)["figures"]
    assert result_of(first)["confusion"] == result_of(second)["confusion"]
    assert (first / "predictions.tsv").read_bytes() == (second / "predictions.tsv").read_bytes()
    answers = [*command, f"file={first / 'predictions.tsv'}", f"folder={second}", "label=prediction"]
    assert main(answers) == 0
    assert result_of(second)["figures"]["accuracy"] == 1.0
    assert not list(first.glob(".*"))


def test_files_of_the_models_own_task_have_no_quotes(glue, tmp_path):
    """GLUE's are read as GLUE writes them, predictions and other files as pandas writes them."""
    task = TASKS["mrpc"]
    own = tmp_path / "dev.tsv"
    own.write_text('#1 String\t#2 String\tQuality\n"a film"\t"lone\t1\n')
    examples = read_file(EvaluateSettings(file=str(own)), task)
    assert examples.texts == [('"a film"', '"lone')]
    write_predictions(tmp_path / "predictions.tsv", task, examples, np.array([[0.0, 1.0]]))
    again = read_file(EvaluateSettings(file=str(tmp_path / "predictions.tsv")), task)
    assert (again.texts, again.labels) == (examples.texts, examples.labels)
    own.write_text('#1 String\t#2 String\tQuality\n"a film"\t"one"\t1\n')
    assert read_file(EvaluateSettings(file=str(own), quotes=True), task).texts == [("a film", "one")]
    assert len(read_file(EvaluateSettings(file=str(glue / "CoLA/dev.tsv")), TASKS["cola"])) == 12


@pytest.mark.parametrize(
    ("content", "words", "message"),
    [
        ("text,label\n", [], "holds no rows below its header: bring some"),
        ("text;label\na;b\n", [], "write separator=semicolon"),
        ("note\na\n", [], "has no column 'text': name one of 'note'"),
        ("text\na\n", ["label=kind"], "has no column 'kind': name one of 'text'"),
        ("text,label,label\na,b,b\n", [], "columns 2 and 3 of its header are called 'label'"),
        ("text,label\na,c\n", [], "line 2 has the label 'c', which is none of 'a', 'b': mend the row"),
        (
            "text\na\n",
            ["separator=colon"],
            "separator='colon' is unknown: write comma, semicolon, tab",
        ),
        ("text\na\n", ["text_pair=b"], "has one text, no pairs: write null"),
    ],
    ids=["no rows", "semicolons", "no text", "no label", "twice", "unknown label", "separator", "pair"],
)
def test_one_line_says_what_is_wrong(content, words, message, checkpoint, tmp_path, capsys):
    model = model_of(custom(["a", "b"]), checkpoint, tmp_path / "model")
    capsys.readouterr()
    file = tmp_path / "a.csv"
    file.write_text(content)
    command = ["evaluate", f"checkpoint={model}", f"file={file}", f"folder={tmp_path / 'seen'}"]
    assert main([*command, *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert "data." not in error
    assert not (tmp_path / "seen").exists()
