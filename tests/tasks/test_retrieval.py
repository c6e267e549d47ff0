"""Collections, rankings, and what judgements say of them: against formulas, and through the command."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

from nystromformer.cli import main
from nystromformer.intervals import mean_interval
from nystromformer.settings.retrieval import RetrievalSettings
from nystromformer.tasks.collection import Collection
from nystromformer.tasks.ranking import Bm25, Nearest, judged_figures, top, written_run
from nystromformer.tasks.retrieval import Search
from tests.tasks.conftest import FILLERS
from tests.test_intervals import scipys_interval

pytest.importorskip("pytrec_eval", reason="needs the extra retrieval")
pytest.importorskip("bm25s", reason="needs the extra retrieval")

WORDS = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("ana", "eke", "ili", "opo", "uru")]


def write_collection(folder: Path, *, documents: int = 40, queries: int = 6) -> Path:
    """BEIR's layout: each query is two rare words that stand in the one document which answers it."""
    draw = random.Random(3)
    (folder / "qrels").mkdir(parents=True)
    texts, asked, judged = [], [], ["query-id\tcorpus-id\tscore"]
    for number in range(documents):
        words = draw.choices(FILLERS, k=20)
        if number < queries:
            words[3:5] = WORDS[2 * number : 2 * number + 2]
            asked.append({"_id": f"q{number}", "text": " ".join(words[3:5])})
            judged.append(f"q{number}\td{number}\t1")
        texts.append({"_id": f"d{number}", "title": draw.choice(FILLERS), "text": " ".join(words)})
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, texts)))
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, asked)))
    (folder / "qrels/test.tsv").write_text("\n".join(judged) + "\n")
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_collection(tmp_path / "collection")


# --- collections --------------------------------------------------------------------------------------


def collection(folder: Path, **more) -> Collection:
    return Collection(folder, "file", **more)


def test_beirs_layout(folder):
    found = collection(folder)
    blocks = list(found.documents(15))
    assert [len(block.ids) for block in blocks] == [15, 15, 10]
    first = json.loads((folder / "corpus.jsonl").read_text().splitlines()[0])
    assert blocks[0].texts[0] == f"{first['title']} {first['text']}"
    assert found.queries()["q1"] == " ".join(WORDS[2:4])
    assert found.judgements("test") == {f"q{n}": {f"d{n}": 1} for n in range(6)}


@pytest.mark.parametrize(
    "text",
    [
        "1 0 7 2\n1 0 8 0\n",
        "1\t7\t2\n1\t8\t0\n",
        "q\td\tgrade\n1\t7\t2\n1\t8\t0",
        "1 Q0 7 2.0\r\n\n1 Q0 8 0\r\n",
    ],
    ids=["trec", "without header", "with header", "blank lines"],
)
def test_forms_of_judgements_are_one(text, folder):
    (folder / "qrels/test.tsv").unlink()
    (folder / "qrels.test.txt").write_bytes(text.encode())
    assert collection(folder).judgements("test") == {"1": {"7": 2, "8": 0}}


def test_cranfields_layout_with_one_as_the_best_grade(tmp_path):
    (tmp_path / "c_documents.jsonl").write_text(
        '{"id": 1, "title": "wings .", "text": "wings . of steel"}\n{"id": 2, "title": "", "text": ""}\n'
    )
    (tmp_path / "c_queries.jsonl").write_text('{"id": 1, "text": "which"}\n')
    (tmp_path / "c_qrels.tsv").write_text("query\tdocument\tgrade\n1\t1\t1\n1\t2\t4\n1\t3\t-1\n")
    found = collection(tmp_path, one_is_best=True)
    assert next(found.documents(9)) == (["1", "2"], ["wings . of steel", ""])
    assert found.judgements("any") == {"1": {"1": 4, "2": 1, "3": -1}}


def test_ms_marcos_columns_without_header(folder):
    (folder / "corpus.jsonl").unlink()
    (folder / "collection.tsv").write_text('7\ta "quoted text\n8\tanother\n')
    (folder / "queries.jsonl").rename(folder / "other")
    (folder / "queries.dev.tsv").write_text("1\twhat is it\n")
    found = collection(folder)
    assert next(found.documents(9)) == (["7", "8"], ['a "quoted text', "another"])
    assert found.queries() == {"1": "what is it"}


def test_compressed_files_are_read(folder):
    import gzip

    plain = folder / "corpus.jsonl"
    before = list(collection(folder).documents(100))
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    assert list(collection(folder).documents(100)) == before


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("corpus.jsonl", None, "lacks a file: it needs corpus.jsonl or"),
        ("queries.jsonl", None, "it needs queries.jsonl or"),
        ("qrels/test.tsv", None, "has no judgements of the split 'test': it needs qrels/test.tsv"),
        ("qrels/test.tsv", "", "holds no judgements: bring some"),
        ("qrels/test.tsv", "q\td\tgrade\nq1\td1\tgood\n", "line 2 is no judgement"),
        ("qrels/test.tsv", "q1\td1\t0.5\nq1\td1\t0.5\n", "line 2 is no judgement"),
        ("qrels/test.tsv", "q1 d1\n", "line 1 is no judgement"),
        ("qrels/test.tsv", "q1 0 d1 1\nq1 0 d1 2\n", "line 2 judges ('q1', 'd1') again, by 2 after 1"),
        ("qrels/test.tsv", "q9 0 d1 1\nq1 0 d1 1\n", "judges 1 queries that are not there, 'q9'"),
        ("qrels/test.tsv", "q1 0 d77 1\nq1 0 d1 1\n", "judges 1 documents that are not there, 'd77'"),
        ("qrels/test.tsv", "q1 0 d1 0\nq1 0 d2 -1\n", "calls no document relevant"),
        ("corpus.jsonl", '{"_id": "d1", "text": "a"}\n{"_id": "d1", "text": "b"}', "line 2 has the id 'd1'"),
        ("corpus.jsonl", '{"name": "d1", "text": "a"}', "line 1 has no '_id' or 'id'"),
        ("corpus.jsonl", '{"_id": "d1", "text": ["a"]}', "line 1 is malformed ('text' is a list"),
        ("queries.jsonl", '{"_id": "q1", "text": ""}', "query 'q1' has no text"),
        ("queries.jsonl", "\n", "holds no rows"),
    ],
)
def test_what_is_wrong_with_a_folder_is_one_line(name, content, said, folder, checkpoint, tmp_path, capsys):
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    out = tmp_path / "out"
    assert main(["evaluate", f"checkpoint={checkpoint}", f"file={folder}", f"folder={out}"]) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert str(folder) in printed
    assert printed.count("\n") == 1
    assert not out.exists()


# --- figures ------------------------------------------------------------------------------------------


def ndcg(grades: list[int], known: list[int], cut: int = 10) -> float:
    def gain(values: list[int]) -> float:
        return sum(max(value, 0) / math.log2(rank + 1) for rank, value in enumerate(values[:cut], start=1))

    return gain(grades) / gain(sorted(known, reverse=True))


def test_figures_are_those_of_the_formulas():
    draw = np.random.default_rng(0)
    judgements, run, expected = {}, {}, []
    for query in map(str, range(20)):
        grades = {str(name): int(draw.integers(-1, 4)) for name in draw.permutation(60)[:12]}
        grades["0"] = 2
        order = [str(name) for name in draw.permutation(60)[:50]]
        judgements[query] = grades
        run[query] = {name: 50.0 - rank for rank, name in enumerate(order)}
        found = [grades.get(name, 0) for name in order]
        relevant = sum(grade > 0 for grade in grades.values())
        ranks = [rank for rank, grade in enumerate(found[:10], start=1) if grade > 0]
        expected.append(
            (
                ndcg(found, list(grades.values())),
                1 / ranks[0] if ranks else 0.0,
                sum(grade > 0 for grade in found[:10]) / relevant,
                sum(grade > 0 for grade in found[:100]) / relevant,
            )
        )
    figures = judged_figures(run, judgements)
    np.testing.assert_allclose(np.array(list(figures.values())).T, expected, atol=1e-6)


def test_a_query_with_nothing_found_counts_as_zero_and_one_without_relevant_not_at_all():
    judgements = {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 0}}
    figures = judged_figures({"a": {"x": 1.0}, "b": {}, "c": {"x": 1.0}}, judgements)
    assert figures["ndcg@10"].tolist() == [1.0, 0.0]


def test_interval_of_a_mean_of_differences_is_the_paired_one():
    draw = np.random.default_rng(1)
    first = draw.uniform(size=200)
    second = first + draw.normal(0.02, 0.05, size=200)
    low, high = mean_interval(second - first)
    theirs = scipys_interval(lambda _, found: float(found.mean()), first, first, second)
    assert (low, high) == pytest.approx(theirs, abs=2e-3)
    assert low < 0.02 < high


# --- rankings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[40], [1] * 40, [3, 30, 7], [13, 13, 14]])
def test_nearest_are_those_of_a_full_sort_for_any_blocks(sizes, monkeypatch):
    monkeypatch.setattr("nystromformer.tasks.ranking._MOST_SCORES", 64)
    draw = np.random.default_rng(0)
    # Few different vectors, of exact products: equal scores are everywhere.
    documents = np.eye(8, dtype=np.float32)[draw.integers(0, 8, 40)] * draw.integers(1, 4, (40, 1))
    queries = draw.integers(0, 3, (9, 8)).astype(np.float32)
    queries[4] = 0
    nearest = Nearest(queries, 7)
    for start, size in zip(np.cumsum([0, *sizes[:-1]]), sizes, strict=True):
        nearest.add(documents[start : start + size].astype(np.float32))
    lengths = np.linalg.norm(queries, axis=1, keepdims=True)
    cosines = (queries / np.where(lengths > 0, lengths, 1)) @ (
        documents / np.linalg.norm(documents, axis=1, keepdims=True)
    ).T
    expected = np.argsort(-cosines.astype(np.float32), axis=1, kind="stable")[:, :7]
    np.testing.assert_array_equal(nearest.numbers, expected)
    np.testing.assert_allclose(nearest.scores, np.take_along_axis(cosines, expected, 1), rtol=1e-6)


def test_fewer_documents_than_asked_for_are_all_ranked():
    nearest = Nearest(np.ones((2, 3), np.float32), 10)
    nearest.add(np.eye(3, dtype=np.float32))
    assert nearest.numbers.tolist() == [[0, 1, 2]] * 2


def test_bm25_finds_the_planted_words_and_nothing_that_shares_none(folder):
    found = Bm25(collection(folder).documents(16)).rank({"q1": " ".join(WORDS[2:4]), "none": "zzzz"}, 100)
    assert list(found["q1"]) == ["d1"]
    assert found["none"] == {}


def test_bm25_scores_are_lucenes():
    from nystromformer.tasks.collection import Block

    texts = ["red fish blue fish", "red car", "green house with garden and pond"]
    (scores,) = Bm25([Block(["a", "b", "c"], texts)]).rank({"q": "fish red"}, 3).values()
    words = [["red", "fish", "blue", "fish"], ["red", "car"], ["green", "house", "garden", "pond"]]
    mean = sum(map(len, words)) / 3

    def weight(word: str, of: list[str]) -> float:
        holding = sum(word in each for each in words)
        idf = math.log(1 + (3 - holding + 0.5) / (holding + 0.5))
        return idf * of.count(word) / (of.count(word) + 1.5 * (1 - 0.75 + 0.75 * len(of) / mean))

    expected = {name: weight("fish", of) + weight("red", of) for name, of in zip("ab", words, strict=False)}
    assert scores == pytest.approx(expected, rel=1e-5)


def test_a_run_in_trecs_form_is_read_by_pytrec_eval():
    import pytrec_eval

    run = {"q": {"a": 0.5, "b": 2.0, "c": 0.5}}
    text = written_run(run, "a name")
    assert pytrec_eval.parse_run(text.splitlines()) == run
    assert [line.split()[2] for line in text.splitlines()] == ["b", "c", "a"]  # trec_eval's order of ties
    assert top(run, 2) == {"q": {"b": 2.0, "c": 0.5}}


def test_a_query_that_is_a_document_does_not_find_itself(folder):
    first = json.loads((folder / "corpus.jsonl").read_text().splitlines()[2])
    with (folder / "queries.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"_id": "d2", "text": first["text"]}))
    with (folder / "qrels/test.tsv").open("a") as file:
        file.write("d2\td5\t1\n")
    run = Search(str(folder), RetrievalSettings()).by_bm25()
    assert "d2" not in run["d2"]
    assert len(run["d2"]) > 10
    assert "d2" in run["q2"]


def test_what_is_judged_below_zero_is_left_out_where_that_is_asked_for(folder):
    (folder / "qrels/test.tsv").write_text("q1 0 d2 1\nq1 0 d1 -1\nq2 0 d2 1\n")
    assert list(Search(str(folder), RetrievalSettings()).by_bm25()["q1"]) == ["d1"]
    left = Search(str(folder), RetrievalSettings(without_below_zero=True))
    assert left.by_bm25() == {"q1": {}, "q2": pytest.approx(left.by_bm25()["q2"])}


# --- the command --------------------------------------------------------------------------------------


def test_the_command_ranks_by_the_model_by_exact_attention_and_by_bm25(folder, checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["evaluate", f"checkpoint={checkpoint}", f"file={folder}", f"folder={out}", "retrieval.depth=15"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    result = json.loads((out / "result.json").read_text())
    exact = f"{checkpoint}, exact attention"
    assert list(result["figures"]) == [str(checkpoint), exact, "BM25"]
    assert result["figures"]["BM25"]["ndcg@10"] == {"mean": 1.0, "interval": [1.0, 1.0]}
    assert (result["queries"], result["documents"]) == (6, 40)
    for title in result["figures"]:
        assert f"| {title} |" in printed
        assert f"| {title} |" in (out / "result.md").read_text()
    runs = {title: (out / name).read_text().splitlines() for title, name in result["rankings"].items()}
    assert len(runs[exact]) == 6 * 15
    assert runs[exact] != runs[str(checkpoint)]


def test_the_models_row_is_the_embedders_cosines(folder, checkpoint, tmp_path):
    from nystromformer.tasks.embedding import Embedder

    out = tmp_path / "out"
    words = ["evaluate", f"checkpoint={checkpoint}", f"file={folder}", f"folder={out}"]
    assert main([*words, "retrieval.bm25=false", "retrieval.exact=false"]) == 0
    found = collection(folder)
    block = next(found.documents(1000))
    embedder = Embedder.load(checkpoint)
    cosines = embedder.encode(found.queries().values()) @ embedder.encode(block.texts).T
    lines = [line.split() for line in (out / "ranking-0.trec").read_text().splitlines()]
    first = [line[2] for line in lines if line[3] == "1"]
    assert first == [block.ids[number] for number in cosines.argmax(1)]


def test_packages_that_are_not_installed_are_named(folder, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["evaluate", "checkpoint=a", f"file={folder}"]) == 2
    printed = capsys.readouterr().err
    assert "needs pytrec-eval-terrier and bm25s, not installed here: pip install" in printed
    assert "nystromformer[retrieval]" in printed


def test_a_bert_is_ranked_as_it_is_and_swapped(folder, checkpoint, tmp_path):
    out = tmp_path / "out"
    words = [
        "evaluate",
        f"checkpoint={checkpoint}",
        f"file={folder}",
        "retrieval.bm25=false",
        f"folder={out}",
    ]
    assert main([*words, "model.attention=softmax"]) == 0
    exact = (out / "ranking-0.trec").read_text()
    assert not (out / "ranking-1.trec").exists()
    assert main([*words, "model.num_landmarks=48"]) == 0  # as many as a row can have: exact attention
    assert [line.split()[:3] for line in (out / "ranking-0.trec").read_text().splitlines()] == [
        line.split()[:3] for line in exact.splitlines()
    ]
    assert main([*words, "model.num_landmarks=2", "model.max_length=16"]) == 0
    assert (out / "ranking-0.trec").read_text() != exact


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("retrieval.depth=5", "retrieval.depth=5 is impossible: write at least 10"),
        ("retrieval.depth=50", "retrieval.* is for file=FOLDER"),
        ("model.max_length=64", "model.* is for file=FOLDER"),
    ],
)
def test_settings_of_a_folder_are_refused_where_they_do_nothing(word, said, tmp_path, capsys):
    (tmp_path / "a.csv").touch()
    assert main(["evaluate", "checkpoint=a", f"file={tmp_path / 'a.csv'}", word]) == 2
    assert said in capsys.readouterr().err
