"""Reranking: layouts, objectives, what batch mates change (nothing), and a planted word that is learned."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from nystromformer.cli import main
from nystromformer.model.source import open_tokenizer
from nystromformer.settings.finetune import EvaluateSettings, TaskDataSettings
from nystromformer.tasks.collection import Collection
from nystromformer.tasks.kinds.rerank import Graded, JudgedFolder, RerankTask, held_out_lists, training_lists
from nystromformer.tasks.results import results_in
from nystromformer.tasks.row_files import Asked
from nystromformer.tasks.task import Examples
from tests.tasks.conftest import FILLERS, PLANTED
from tests.tasks.test_retrieval import WORDS, write_collection

pytest.importorskip("pytrec_eval", reason="needs the extra retrieval")
OBJECTIVES = ("listwise", "pointwise", "regression")


def task_of(objective: str = "listwise", best: float = 1.0) -> RerankTask:
    names = ("ndcg@10", "mrr@10")
    return RerankTask("rerank", "ranking", goal=objective, best=best, metrics=names, score=names[:1])


def read(path: Path, rows: list[dict] | str, **more) -> Examples:
    path.write_text(rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows))
    examples = Examples.of(task_of().read(EvaluateSettings(file=str(path), **more)))
    assert isinstance(examples, Examples)
    return examples


# --- files --------------------------------------------------------------------------------------------


def test_layouts(tmp_path):
    pairs = read(tmp_path / "a.csv", "query,document,label\nq,one,2\nq,two,0\n")
    assert pairs.texts == [("q", "one"), ("q", "two")]
    assert pairs.labels == [("q", [2.0]), ("q", [0.0])]
    lists = read(
        tmp_path / "b.jsonl", [{"query": "q", "documents": ["one", "two"], "labels": [0, 0.5], "id": 7}]
    )
    assert (lists.texts, lists.labels, lists.ids) == ([("q", "one", "two")], [("q", [0.0, 0.5])], ["7"])
    triples = read(
        tmp_path / "c.jsonl",
        [
            {"anchor": "q", "positive": "one", "negative": "two"},
            {"query": "q", "positives": ["one", "three"], "negatives": ["two"]},
            {"query": "q", "positive": "one", "negative_1": "two", "negative_2": "three"},
        ],
    )
    assert triples.texts == [("q", "one", "two"), ("q", "one", "three", "two"), ("q", "one", "two", "three")]
    assert [label.grades for label in triples.labels or []] == [[1, 0], [1, 1, 0], [1, 0, 0]]


def test_without_labels_there_are_only_scores(tmp_path):
    assert read(tmp_path / "a.jsonl", [{"query": "q", "document": "one"}]).labels is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"query": ""}, "has no query: write query and document"),
        ({"document": None}, "has no document: write query and document"),
        ({"label": None}, "has no label (label, grade, labels, grades)"),
        ({"label": "good"}, "has 'good' in 'label', which is no number"),
        ({"label": [1, 2]}, "2 labels of 1 documents"),
        ({"query": ["q"]}, "'query' is a list, where a text should be"),
        ({"document": None, "documents": ["one", ["two"]]}, "'documents' holds what is no text"),
    ],
)
def test_what_is_wrong_with_a_row_is_said(change, said, words, tmp_path, capsys):
    path = tmp_path / "bad.jsonl"
    row = {"query": "q", "document": "one", "label": 1}
    path.write_text("\n".join(map(json.dumps, [row, {**row, **change}])))
    assert main(words("task=rerank", f"data.train={path}")) == 2
    printed = capsys.readouterr().err
    assert f"{path}, line 2 " in printed
    assert said in printed
    assert not (tmp_path / "runs").exists()


def test_nothing_to_tell_apart_is_said(words, tmp_path, capsys):
    path = tmp_path / "same.csv"
    path.write_text("query,document,label\n" + "".join(f"q{n},one,1\nq{n},two,1\n" for n in range(8)))
    assert main(words("task=rerank", f"data.train={path}")) == 2
    assert "no query has both a relevant document" in capsys.readouterr().err


# --- lists --------------------------------------------------------------------------------------------


def test_a_long_list_becomes_one_for_each_relevant_document_with_lower_ones():
    documents = [f"d{number}" for number in range(20)]
    grades = [2.0, 1.0, *[0.0] * 18]
    label = Graded("q", grades)
    lists = training_lists(Examples([("q", *documents)], [label], ["7"]), 6)
    assert lists.ids == ["7", "7"]
    for number, (texts, found) in enumerate(zip(lists.texts, lists.labels or [], strict=True)):
        assert texts[:2] == ("q", f"d{number}")
        assert len(set(texts)) == 7
        assert found.grades[0] == grades[number]
        assert all(
            grades[int(name[1:])] == grade for name, grade in zip(texts[1:], found.grades, strict=True)
        )
        assert max(found.grades[1:]) < found.grades[0]
    again = training_lists(Examples([("q", *documents)], [label], ["7"]), 6)
    assert again == lists
    assert training_lists(Examples([("q", *documents[:6])], [Graded("q", grades[:6])], ["7"]), 6).texts == [
        ("q", *documents[:6])
    ]


@pytest.mark.parametrize("mined", ["bm25", "random"])
def test_a_folders_queries_get_relevant_documents_first_and_others_beside(mined, tmp_path):
    folder = write_collection(tmp_path / "c", documents=200)
    with (folder / "qrels/test.tsv").open("a") as file:
        file.write("q0\td9\t2\nq0\td8\t0\nq0\td7\t-1\n")
    (folder / "qrels/test.tsv").rename(folder / "qrels/train.tsv")
    # BM25 finds what shares a word with a query; for the last one that is the relevant document alone.
    rows = [json.loads(line) for line in (folder / "queries.jsonl").read_text().splitlines()]
    (folder / "queries.jsonl").write_text(
        "\n".join(
            json.dumps({**row, "text": row["text"] + (" film" if row["_id"] != "q5" else "")}) for row in rows
        )
    )
    data = TaskDataSettings(train=str(folder), mined=mined)
    examples = JudgedFolder(Asked(folder, "data.train"), data).examples()
    assert examples.ids == [f"q{n}" for n in range(6)]
    (block,) = Collection(folder, "file").documents(1000)
    texts = {text: name for name, text in zip(*block, strict=True)}
    for number, ((_, *documents), label) in enumerate(
        zip(examples.texts, examples.labels or [], strict=True)
    ):
        names = [texts[document] for document in documents]
        relevant = ["d0", "d9"] if number == 0 else [f"d{number}"]
        assert names[: len(relevant)] == relevant
        assert not {*relevant} & {*names[len(relevant) :]}
        if mined == "bm25" and number < 5:
            assert all("film" in document.split() for document in documents[len(relevant) :])
        assert (
            label.grades == [1, 2, *[0] * 100][: len(names)] if number == 0 else [1, *[0] * (len(names) - 1)]
        )
        assert len(names) == len(set(names)) == 100 + len(relevant)
    held = held_out_lists(examples)
    assert [len(texts) for texts in held.texts] == [33] * 6


# --- losses -------------------------------------------------------------------------------------------


def some(counts: list[int], grades: list[int] | None = None) -> Examples:
    draw = random.Random(1)

    def text() -> str:
        return " ".join(draw.choices(FILLERS, k=draw.randrange(3, 20)))

    lists = [(text(), *(text() for _ in range(count))) for count in counts]
    labels = [
        Graded(texts[0], [float((n * 7 + k) % 3) for k in range(len(texts) - 1)])
        for n, texts in enumerate(lists)
    ]
    return Examples(lists, labels, [str(number) for number in range(len(counts))])


@pytest.fixture(scope="module")
def model_and_tokenizer(checkpoint):
    torch.manual_seed(0)
    return (
        RerankTask.head.from_pretrained(checkpoint, num_labels=1).eval(),
        open_tokenizer(None, str(checkpoint)),
    )


def expected_loss(objective: str, scores: np.ndarray, grades: list[float], best: float) -> list[float]:
    if objective == "listwise":
        logs = scores - np.log(np.exp(scores).sum())
        return [-float((np.array(grades) / sum(grades)) @ logs)]
    if objective == "regression":
        return [float((score - grade) ** 2) for score, grade in zip(scores, grades, strict=True)]
    chances = 1 / (1 + np.exp(-scores))
    return [
        -(grade / best * math.log(p) + (1 - grade / best) * math.log(1 - p))
        for p, grade in zip(chances, grades, strict=True)
    ]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_losses_are_those_of_the_formulas_whole_and_in_parts(objective, model_and_tokenizer):
    model, tokenizer = model_and_tokenizer
    task = task_of(objective, best=2.0)
    encoded = task.encode(some([4, 2, 3]), tokenizer, 40)
    pad = tokenizer.pad_token_id
    with torch.no_grad():
        alone = [task.outputs(model, task.collate(encoded, [n], pad, labelled=False))[0] for n in range(3)]
        together = task.outputs(model, task.collate(encoded, [0, 1, 2], pad, labelled=False))
        whole = task.collate(encoded, [0, 1, 2], pad, labelled=True)
        loss = task.loss(model, whole)
        parts = [task.collate(encoded, rows, pad, labelled=True) for rows in ([0, 2], [1])]
        shares = [task.loss(model, part) * task.items(part) for part in parts]
    assert [len(row) for row in together] == [4, 2, 3]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    expected = [
        value
        for scores, label in zip(alone, encoded.labels or [], strict=True)
        for value in expected_loss(objective, scores.astype(float), label.grades, 2.0)
    ]
    assert task.items(whole) == len(expected)
    np.testing.assert_allclose(float(loss), np.mean(expected), rtol=1e-4)
    np.testing.assert_allclose(float(sum(shares)) / len(expected), np.mean(expected), rtol=1e-4)
    np.testing.assert_allclose(task.losses(encoded, together), expected, rtol=1e-3, atol=1e-5)


def test_a_list_without_a_relevant_document_asks_for_nothing(model_and_tokenizer):
    model, tokenizer = model_and_tokenizer
    examples = some([3])
    examples.labels = [Graded("q", [0.0, 0.0, -1.0])]
    batch = task_of().collate(task_of().encode(examples, tokenizer, 40), [0], 0, labelled=True)
    loss = task_of().loss(model, batch)
    loss.backward()
    assert not loss.any()
    assert all(
        torch.isfinite(x.grad).all() and not x.grad.any() for x in model.parameters() if x.grad is not None
    )
    model.zero_grad()


def test_figures_are_of_queries_whether_in_lists_or_in_pairs():
    lists = [Graded("a", [0, 1, 0]), Graded("b", [1, 0]), Graded("c", [0, 0])]
    scores = [[3.0, 2.0, 1.0], [1.0, 0.5], [1.0, 2.0]]
    figures = task_of().figures(lists, scores)
    assert figures["mrr@10"] == pytest.approx(0.75)
    assert figures["ndcg@10"] == pytest.approx((1 / math.log2(3) + 1) / 2)
    assert figures["score"] == figures["ndcg@10"]
    pairs = [
        (Graded(label.query, [grade]), [score])
        for label, row in zip(lists, scores, strict=True)
        for grade, score in zip(label.grades, row, strict=True)
    ]
    random.Random(0).shuffle(pairs)
    assert task_of().figures(*zip(*pairs, strict=True)) == pytest.approx(figures)
    from_json = [json.loads(json.dumps(part)) for part in zip(*pairs, strict=True)]
    assert task_of().figures(*from_json) == pytest.approx(figures)


# --- the commands -------------------------------------------------------------------------------------


def planted_rows(count: int) -> list[dict]:
    """The relevant document of each query holds the planted word."""
    draw = random.Random(0)

    def text(word: str) -> str:
        words = draw.choices(FILLERS, k=8)
        words[draw.randrange(8)] = word
        return " ".join(words)

    rows = []
    for number in range(count):
        query = f"{draw.choice(FILLERS)} {number}"
        rows.append(
            {"query": query, "positive": text(PLANTED[1]), "negatives": [text(PLANTED[0]) for _ in range(3)]}
        )
    return rows


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_planted_word_is_learned_and_the_model_used(objective, words, tmp_path, capsys):
    path = tmp_path / "mine.jsonl"
    rows = planted_rows(160)
    path.write_text("\n".join(map(json.dumps, rows)))
    more = ["task.epochs=4", "task.learning_rates=[5e-3]", "task.batch_sizes=[16]", "name=learn"]
    more += ["training.micro_batch_size=8", "model.hidden_dropout=0", f"task.loss={objective}"]
    assert main(words("task=rerank", f"data.train={path}", *more)) == 0
    (result,) = results_in(tmp_path / "runs/learn/rerank")
    assert result["dev"]["mrr@10"] > 0.95
    folder = tmp_path / "runs/learn/rerank/model"
    pairs = tmp_path / "pairs.csv"
    asked = [(rows[0]["query"], text) for text in (*rows[0]["negatives"], rows[0]["positive"])]
    pairs.write_text("query,document\n" + "".join(f"{query},{text}\n" for query, text in asked))
    out = tmp_path / "out"
    assert main(["predict", f"checkpoint={folder}", f"file={pairs}", f"folder={out}"]) == 0
    scores = [json.loads(line)["prediction"] for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert int(np.argmax(scores)) == 3
    assert main(["evaluate", f"checkpoint={folder}", f"file={path}", f"folder={tmp_path / 'evaluated'}"]) == 0
    assert "mrr@10 1.0000" in capsys.readouterr().out
    if objective == "pointwise":
        assert all(0 < score < 1 for score in scores)
    theirs = pytest.importorskip("sentence_transformers").CrossEncoder(
        str(folder), activation_fn=torch.nn.Sigmoid() if objective == "pointwise" else torch.nn.Identity()
    )
    np.testing.assert_allclose(theirs.predict(asked), scores, rtol=1e-3, atol=1e-4)


def test_a_folder_is_learned_and_its_documents_are_ranked_anew(words, checkpoint, tmp_path, capsys):
    """The relevant documents hold a word that no other has, and that no query tells BM25 of."""
    folder = write_collection(tmp_path / "c", documents=120, queries=30)
    corpus = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    for row in corpus[:6]:
        row["text"] = f"{PLANTED[1]} {row['text']}"
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, corpus)))
    draw = random.Random(2)
    asked = [{"_id": f"q{n}", "text": " ".join(draw.sample(FILLERS[2:7], 3))} for n in range(30)]
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, asked)))
    for name, numbers in {"train": range(20), "dev": range(20, 25), "test": range(25, 30)}.items():
        judged = "".join(f"q{number}\td{one}\t1\n" for number in numbers for one in range(6))
        (folder / f"qrels/{name}.tsv").write_text(judged)
    more = ["task.epochs=4", "task.learning_rates=[5e-3]", "data.candidates=4", "name=ranker"]
    assert main(words("task=rerank", f"data.train={folder}", *more, "model.hidden_dropout=0")) == 0
    (result,) = results_in(tmp_path / "runs/ranker/rerank")
    assert result["dev"]["mrr@10"] > 0.9
    ranker = tmp_path / "runs/ranker/rerank/model"
    capsys.readouterr()
    both = ["evaluate", f"file={folder}", "retrieval.rerank_depth=120", "retrieval.depth=120"]
    out = [f"folder={tmp_path / 'as_ranker'}", f"checkpoint={ranker}"]
    assert main([*both, *out]) == 0
    found = json.loads((tmp_path / "as_ranker/result.json").read_text())["figures"]
    assert list(found) == [str(ranker), f"{ranker}, exact attention", "BM25"]
    recall = {title: figures["recall@10"]["mean"] for title, figures in found.items()}
    assert recall[str(ranker)] > recall["BM25"]
    out = [f"folder={tmp_path / 'beside'}", f"checkpoint={checkpoint}", f"retrieval.rerank={ranker}"]
    assert main([*both, *out, "retrieval.exact=false"]) == 0
    figures = json.loads((tmp_path / "beside/result.json").read_text())["figures"]
    assert list(figures) == [str(checkpoint), "BM25", f"{checkpoint}, reranked", "BM25, reranked"]
    assert figures["BM25, reranked"] == found[str(ranker)]


def test_a_model_of_another_kind_does_not_rerank(checkpoint, tmp_path, capsys):
    folder = write_collection(tmp_path / "c")
    words = ["evaluate", f"checkpoint={checkpoint}", f"file={folder}", f"retrieval.rerank={checkpoint}"]
    assert main([*words, f"folder={tmp_path / 'out'}"]) == 2
    assert f"retrieval.rerank={checkpoint} does not rerank: write a model of" in capsys.readouterr().err
    words = [*words[:3], "retrieval.beside=[nowhere]", f"folder={tmp_path / 'out'}"]
    assert main(words) == 2
    printed = capsys.readouterr().err
    assert "retrieval.beside=nowhere" in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_words_exist_for_every_planted_query():
    assert len(WORDS) >= 2 * 30
