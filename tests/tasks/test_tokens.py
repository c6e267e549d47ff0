"""Tags of words: files, rows, spans, and a planted tag that is learned on whole documents."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, pipeline

from nystromformer.cli import main
from nystromformer.model.losses import IGNORED
from nystromformer.model.source import open_tokenizer
from nystromformer.settings.finetune import EvaluateSettings
from nystromformer.tasks.kinds.tokens import Documents, TokenTask
from nystromformer.tasks.results import results_in
from nystromformer.tasks.scores import class_scores, span_scores
from nystromformer.tasks.tagged_files import Word, mended, scheme_of

from .conftest import FILLERS, PLANTED

TAGS = ("O", "B-PER", "I-PER")
TASK = TokenTask("ner", "tags of words", labels=TAGS, scheme="bio", metrics=("f1", "accuracy"), score=("f1",))


def read(path: Path, text: str, task: TokenTask = TASK) -> Documents:
    path.write_text(text)
    documents = Documents.of(task.read(EvaluateSettings(file=str(path))))
    assert isinstance(documents, Documents)
    return documents


def test_columns_with_documents(tmp_path):
    start = "-DOCSTART- -X- O O\n\n"
    text = f"{start}Ada NNP I B-PER\nwrote VBD I O\n\nit PRP I O\n\n{start}yes UH I O\n"
    documents = read(tmp_path / "a.conll", text)
    assert documents.texts == [("Ada", "wrote", "it"), ("yes",)]
    assert documents.labels == [[[1, 0], [0]], [[0]]]
    sentences = read(tmp_path / "a.conll", text, TokenTask("ner", "", labels=TAGS, unit="sentence"))
    assert sentences.texts == [("Ada", "wrote"), ("it",), ("yes",)]


def test_without_documents_each_sentence_is_one_and_words_without_tags_can_be_read(tmp_path):
    assert read(tmp_path / "a.tsv", "Ada\tB-PER\n\n\nit\tO\n").texts == [("Ada",), ("it",)]
    words = read(tmp_path / "a.txt", "Ada\nwrote\n\nit\n")
    assert (words.texts, words.labels, words.ids) == ([("Ada", "wrote"), ("it",)], None, ["0", "1"])


def test_json_lines_of_words_or_of_sentences(tmp_path):
    rows = [
        {"tokens": ["Ada", "wrote"], "tags": ["B-PER", "O"], "id": "first"},
        {"tokens": [["Ada"], ["wrote", "it"]], "tags": [["B-PER"], ["O", "O"]]},
    ]
    documents = read(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    assert documents.labels == [[[1, 0]], [[1], [0, 0]]]
    assert documents.ids == ["first", "1"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.conll", "Ada\tB-PER\n\nwrote\n", "line 3 is malformed (1 columns, where there should be 2)"),
        ("a.conll", "Ada\tB-PER\n\tO\n", "line 2 has no word"),
        ("a.conll", "Ada\tB-PER\nwrote\t \n", "line 2 has no tag"),
        ("a.conll", "Ada\tB-PER\n\nshe\tI-PER\n", "line 3 has the tag I-PER after O, where BIO has B-PER"),
        ("a.jsonl", '{"tokens": ["a"], "tags": ["O", "O"]}', "line 1 is malformed (1 words and 2 tags)"),
        ("a.jsonl", '{"words": ["a"]}', "line 1 is malformed (no list 'tokens': write data.tokens=NAME"),
        ("a.jsonl", '{"tokens": ["a"]}', "line 1 has no list 'tags': write data.tags=NAME"),
        ("a.jsonl", '{"tokens": ["a", null], "tags": ["O", "O"]}', "'tokens' holds 'None', where a word"),
        ("a.jsonl", "[", "line 1 is malformed (no JSON"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(name, text, said, words, tmp_path, capsys):
    path = tmp_path / name
    path.write_text(text)
    assert main(words("task=ner", f"data.train={path}")) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert len(printed.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_an_unknown_tag_names_its_line_or_is_left_out(words, tmp_path, capsys):
    train, dev = tmp_path / "train.conll", tmp_path / "dev.conll"
    train.write_text("Ada\tB-PER\nwrote\tO\n\n" * 8)
    dev.write_text("Ada\tB-PER\n\nRome\tB-LOC\n")
    files = [f"data.train={train}", f"data.dev={dev}"]
    assert main(words("task=ner", *files)) == 2
    assert f"{dev}, line 3 has the tag 'B-LOC', which no training example has" in capsys.readouterr().err
    assert main(words("task=ner", *files, "data.malformed_rows=skip")) == 0
    assert "1 malformed rows were left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("scheme", "tags", "right"),
    [
        ("bio", "I-A I-A O I-B B-B I-A", "B-A I-A O B-B B-B B-A"),
        ("iobes", "B-A O I-A I-A B-B E-B S-B", "S-A O B-A E-A B-B E-B S-B"),
        ("bio", "B-A I-A O", "B-A I-A O"),
    ],
)
def test_repair_writes_what_the_scheme_allows_and_is_then_content(scheme, tags, right):
    words = [Word("a", tag, 1) for tag in tags.split()]
    found = mended(words, scheme, repair=True)
    assert [word.tag for word in found] == right.split()
    assert mended(found, scheme, repair=False) == found


def test_scheme_is_known_by_its_tags():
    assert scheme_of(["O", "B-A", "I-A"]) == "bio"
    assert scheme_of(["O", "B-A", "E-A", "S-B"]) == "iobes"
    assert scheme_of(["NN", "VB"]) == scheme_of(["O", "B-A", "PER"]) == scheme_of(["O"]) == "plain"


def test_span_scores_are_those_of_a_count_by_hand():
    truth = [["B-A", "I-A", "O", "B-B"], ["O", "B-A"]]
    found = [["B-A", "O", "O", "B-B"], ["B-A", "B-A"]]
    # True spans: (0-1 A), (3 B), (5 A); found: (0 A), (3 B), (4 A), (5 A); in common two.
    scores = span_scores(truth, found, "bio")
    assert scores == pytest.approx({"precision": 2 / 4, "recall": 2 / 3, "f1": 4 / 7})
    assert class_scores(truth, found, "bio")["B"] == {"precision": 1, "recall": 1, "f1": 1, "support": 1}
    # I after O begins no span where it is strict.
    assert span_scores([["O", "B-A"]], [["O", "I-A"]], "bio")["f1"] == 0


def documents_of(lengths: list[list[int]], labelled: bool = True) -> Documents:
    draw = random.Random(3)
    texts = [tuple(draw.choices(FILLERS + PLANTED, k=sum(sizes))) for sizes in lengths]
    labels = [[[draw.randrange(3) for _ in range(size)] for size in sizes] for sizes in lengths]
    return Documents(texts, labels if labelled else None, [str(n) for n in range(len(texts))], lengths)


def test_long_documents_are_cut_between_sentences_and_no_word_is_lost(checkpoint):
    tokenizer = open_tokenizer(None, str(checkpoint))
    documents = documents_of([[5, 5, 5], [3], [30, 2], [9, 4]])
    rows = TASK.encode(documents, tokenizer, 16)
    assert rows.lengths.max() <= 16
    assert rows.documents == sorted(rows.documents)
    assert [len(row) for row in rows.firsts] == [10, 5, 3, 14, 14, 4, 13]
    # The tags themselves as outputs come back in the documents' own sentences.
    perfect = [np.eye(3, dtype=np.float32)[tags] for tags in rows.labels]
    assert TASK.predict(rows, perfect) == documents.labels
    figures = TASK.figures(documents.labels, TASK.predict(rows, perfect))
    assert figures["accuracy"] == 1.0


def test_rows_are_as_transformers_makes_them_of_words(checkpoint):
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    texts = [("unknownword", "the", "don't", "…", "film")]
    documents = Documents(texts, [[[1, 0, 2, 0, 0]]], ["0"], [[5]])
    rows = TASK.encode(documents, tokenizer, 48)
    expected = tokenizer(list(texts[0]), is_split_into_words=True)
    assert rows.input_ids[0] == expected["input_ids"]
    words = expected.word_ids()
    assert rows.firsts[0] == [words.index(word) for word in range(5)]
    batch = TASK.collate(rows, [0], tokenizer.pad_token_id, labelled=True)
    assert batch["labels"][0][rows.firsts[0]].tolist() == [1, 0, 2, 0, 0]
    assert TASK.items(batch) == 5
    assert (batch["labels"] == IGNORED).sum() == len(words) - 5


def test_a_word_without_pieces_or_longer_than_a_row_has_a_tag_too(checkpoint):
    tokenizer = open_tokenizer(None, str(checkpoint))
    documents = Documents([("\u200b", "a" * 40, "film")], [[[0, 1, 2]]], ["0"], [[3]])
    rows = TASK.encode(documents, tokenizer, 12)
    assert sum(map(len, rows.firsts)) == 3
    assert max(map(len, rows.input_ids)) <= 12


def test_words_do_not_depend_on_batch_mates_and_parts_add_up(checkpoint):
    tokenizer = open_tokenizer(None, str(checkpoint))
    torch.manual_seed(0)
    model = TASK.head.from_pretrained(checkpoint, num_labels=3).eval()
    documents = documents_of([[7, 3], [2], [20]])
    rows, pad = TASK.encode(documents, tokenizer, 48), tokenizer.pad_token_id
    with torch.no_grad():
        together = TASK.outputs(model, TASK.collate(rows, [0, 1, 2], pad, labelled=False))
        for number, found in enumerate(together):
            (alone,) = TASK.outputs(model, TASK.collate(rows, [number], pad, labelled=False))
            np.testing.assert_allclose(found, alone, atol=2e-5)
        whole = TASK.collate(rows, [0, 1, 2], pad, labelled=True)
        expected = model(**whole).loss
        parts = [TASK.collate(rows, [n], pad, labelled=True) for n in range(3)]
        shares = [TASK.loss(model, part) * TASK.items(part) / 32 for part in parts]
    torch.testing.assert_close(sum(shares), expected)
    torch.testing.assert_close(TASK.losses(rows, together).mean(), expected)


@pytest.mark.parametrize("unit", ["document", "sentence"])
def test_planted_spans_are_learned_and_the_model_used(unit, words, tmp_path, capsys):
    draw, lines = random.Random(0), []
    for _ in range(40):
        lines.append("-DOCSTART-\n")
        for _ in range(6):
            sentence = [(word, "O") for word in draw.choices(FILLERS, k=5)]
            sentence[3:3] = draw.choice([[], [("great", "B-GOOD")], [("awful", "B-BAD"), ("plot", "I-BAD")]])
            lines += [f"{word}\t{tag}" for word, tag in sentence] + [""]
    path = tmp_path / "mine.conll"
    path.write_text("\n".join(lines))
    more = ["task.epochs=6", "task.learning_rates=[1e-2]", "task.batch_sizes=[8]", "name=learn"]
    more += [f"data.unit={unit}", "model.hidden_dropout=0", "training.micro_batch_size=4"]
    assert main(words("task=ner", f"data.train={path}", *more)) == 0
    (result,) = results_in(tmp_path / "runs/learn/ner")
    assert result["dev"]["f1"] > 0.9
    assert set(result["classes"]) == {"GOOD", "BAD"}
    assert list(tmp_path.glob("runs/learn/ner/rate*/seed-0/classes.png"))
    folder = tmp_path / "runs/learn/ner/model"
    capsys.readouterr()
    found = tmp_path / "found"
    assert main(["evaluate", f"checkpoint={folder}", f"file={path}", f"folder={found}"]) == 0
    assert (
        f"f1 {json.loads((found / 'result.json').read_text())['figures']['f1']:.4f}"
        in capsys.readouterr().out
    )
    text = (found / "predictions.conll").read_text()
    rows = [line.split("\t") for line in text.splitlines() if "\t" in line]
    assert [row[:2] for row in rows] == [line.split("\t") for line in lines if "\t" in line]
    assert np.mean([row[1] == row[2] for row in rows]) > 0.98
    tag = pipeline("token-classification", model=str(folder), aggregation_strategy="first")
    spans = tag("the film was awful plot and one")
    assert [(span["entity_group"], span["word"]) for span in spans] == [("BAD", "awful plot")]
