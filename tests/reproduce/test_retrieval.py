"""Search by vectors, untrained and trained, at smoke size."""

from __future__ import annotations

import json
import re

import pytest

from nystromformer.cli import main
from tests.tasks.conftest import make_checkpoint
from tests.tasks.test_retrieval import write_collection

pytest.importorskip("pytrec_eval", reason="needs the extra retrieval")
pytest.importorskip("bm25s", reason="needs the extra retrieval")


@pytest.mark.slow
def test_every_model_is_beside_exact_attention_and_bm25(tmp_path, capsys):
    folder = write_collection(tmp_path / "collection")
    (folder / "qrels/test.tsv").write_text("".join(f"q{n}\td{n}\t1\nq{n}\td{n + 6}\t-1\n" for n in range(6)))
    exact = {"attention": "softmax", "conv_kernel_size": None}
    words = [
        "reproduce", "table=retrieval", "scale=smoke", f"folder={tmp_path}/out",
        f"runs_folder={tmp_path}/runs", f"checkpoint={make_checkpoint(tmp_path / 'model', **exact)}",
    ]  # fmt: skip
    assert main(words) == 2
    assert "collection is empty: with table=retrieval write collection=FOLDER" in capsys.readouterr().err
    words.append(f"collection={folder}")
    assert main(words) == 0
    result = json.loads((tmp_path / "out/retrieval_smoke/result.json").read_text())
    page = (tmp_path / "out/retrieval_smoke/README.md").read_text()
    assert str(tmp_path) not in page
    assert "6 judgements are below 0" in page
    models = [
        f"{name}, {state}"
        for state in ("untrained", "trained")
        for name in ("exact", "Nyström", "Nyström and neighbours")
    ]
    figures = result["measured"]["figures"]
    assert list(figures) == ["BM25", *models]
    assert figures["BM25"]["all"]["ndcg@10"]["mean"] == 1
    for title, found in figures.items():
        assert f"| {title} | {found['all']['ndcg@10']['mean']:.4f} [" in page
        gained = result["measured"]["against_exact"].get(title)
        if gained:
            exact_title = f"exact, {title.rpartition(', ')[2]}"
            expected = found["all"]["ndcg@10"]["mean"] - figures[exact_title]["all"]["ndcg@10"]["mean"]
            assert gained["mean"] == pytest.approx(expected)
    trained = {
        re.sub("_[0-9a-f]+$|-[0-9a-f]+$", "", path.parent.parent.name): json.loads(
            (path / "config.json").read_text()
        )
        for path in (tmp_path / "runs").glob("*/embed/model")
    }
    assert {name: (config["attention"], config.get("neighbours")) for name, config in trained.items()} == {
        "retrieval_exact_embed": ("softmax", None),
        "retrieval_nystrom_embed": ("nystrom", None),
        "retrieval_nystrom_and_neighbours_embed": ("nystrom", 8),
    }
    assert set(result["inputs"]) == {"weights", "tokenizer", "collection"}
    capsys.readouterr()
    assert main([*words, "again=true"]) == 0
    assert "seed 0: step" not in capsys.readouterr().out
    assert main(words) == 0
    assert "measured already" in capsys.readouterr().out
    with (folder / "queries.jsonl").open("a") as file:
        file.write("\n")
    assert main(words) == 0
    assert "collection: another than on" in capsys.readouterr().out
