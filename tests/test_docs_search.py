"""The page on search does what it says, from a folder of notes to a ranking that is read again."""

from __future__ import annotations

import json
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import BertConfig, BertModel

from nystromformer.cli import main
from nystromformer.model.source import open_tokenizer
from tests.tasks.conftest import FILLERS, PLANTED, make_checkpoint
from tests.tasks.test_retrieval import write_collection

pytest.importorskip("pytrec_eval", reason="needs the extra retrieval")
pytest.importorskip("bm25s", reason="needs the extra retrieval")
PAGE = (Path(__file__).parent.parent / "docs/search.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def run_python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120
    ).stdout


def test_from_notes_to_a_search(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    draw = random.Random(0)
    (tmp_path / "notes").mkdir()
    for number in range(24):
        title = f"# {draw.choice(FILLERS)} {PLANTED[number % 3]} {number}"
        body = " ".join(draw.choices(FILLERS, k=60))
        (tmp_path / f"notes/note-{number:02}.md").write_text(f"{title}\n\n{body}\n")
    judged = write_collection(tmp_path / "judged", queries=8)
    (judged / "qrels/train.tsv").write_bytes((judged / "qrels/test.tsv").read_bytes())
    pair = {"query": "the film", "document": "a plot"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair))
    tokenizer = open_tokenizer(None, str(checkpoint))
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    make_notes, search = blocks("python")
    run_python(make_notes)
    rows = [json.loads(line) for line in (tmp_path / "notes.jsonl").read_text().splitlines()]
    assert len(rows) == 24
    assert all(row["text"].startswith(row["title"]) and "#" not in row["title"] for row in rows)
    small = ["task.epochs=1", "task.batch_sizes=[4]"]
    commands = [shlex.split(line) for block in blocks("bash") for line in block.splitlines()]
    for program, *words in commands:
        assert program == ".venv/bin/nystromformer"
        words = [re.sub("source=.*", "source=bert", word) for word in words]
        assert main([*words, *(small if words[0] == "finetune" else [])]) == 0, words
    for folder in ("vectors", "trained"):
        vectors = np.load(tmp_path / folder / "vectors.npy")
        assert vectors.shape == (24, 32)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    found = run_python(search).splitlines()
    assert [re.fullmatch(r"-?\d\.\d{3}  notes/note-\d\d\.md", line) is not None for line in found] == [
        True
    ] * 5
    measured = json.loads((tmp_path / "measured/result.json").read_text())["figures"]
    model = "runs/search/embed/model"
    assert list(measured) == [
        model, f"{model}, exact attention", "embedder", "embedder, exact attention", "BM25",
    ]  # fmt: skip
    reranked = json.loads((tmp_path / "reranked/result.json").read_text())["figures"]
    assert f"{model}, reranked" in reranked
    scored = json.loads((tmp_path / "scored/predictions.jsonl").read_text())
    assert isinstance(scored["prediction"], float)
