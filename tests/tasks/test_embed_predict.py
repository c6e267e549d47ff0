"""`predict` with vectors: of any checkpoint, killed and gone on, and what it refuses."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from nystromformer.cli import main
from nystromformer.tasks.embedding import Embedder
from tests.tasks.conftest import text_of


@pytest.mark.parametrize("form", [None, "parquet"])
def test_predict_makes_vectors_with_any_checkpoint_and_leaves_out_what_cannot_be_read(
    form, checkpoint, tmp_path, capsys
):
    texts = [text_of(random.Random(n), length=3 + 5 * n) for n in range(8)]
    lines = [json.dumps({"id": f"n{n}", "note": t}) for n, t in enumerate(texts)]
    lines[3], lines[5] = "nonsense", json.dumps({"id": "n5", "note": ""})
    file = tmp_path / "notes.jsonl"
    file.write_text("\n".join(lines) + "\n")
    out = tmp_path / "out"
    words = ["predict", "task=embed", f"checkpoint={checkpoint}", f"file={file}", "text=note"]
    words += [f"folder={out}", "model.max_length=20", "model.attention=softmax", "normalise=false"]
    assert main([*words, *([f"format={form}"] if form else [])]) == 0
    embedder = Embedder.load(checkpoint, max_length=20, attention="softmax")
    good = [n for n in range(8) if n not in (3, 5)]
    wanted = embedder.encode([texts[n] for n in good], normalise=False)
    if form is None:
        found = np.load(out / "vectors.npy")
        ids = [json.loads(line) for line in (out / "ids.jsonl").read_text().splitlines()]
    else:
        table = pq.read_table(out / "vectors.parquet").to_pydict()
        found, ids = np.array(table["vector"], np.float32), table["id"]
        assert not (out / "vectors.npy").exists()
    assert ids == [f"n{n}" for n in good]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    errors = [json.loads(line) for line in (out / "errors.jsonl").read_text().splitlines()]
    assert [error["id"] for error in errors] == ["3", "5"]
    assert "2 of 8 rows could not be read" in capsys.readouterr().err
    before = {path: path.stat().st_mtime_ns for path in out.glob("vectors*")}
    assert main([*words, *([f"format={form}"] if form else [])]) == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("vectors*")} == before
    assert main([*words, "model.neighbours=4", *([f"format={form}"] if form else [])]) == 2
    assert "was begun with model.neighbours=null, not 4" in capsys.readouterr().err


@pytest.mark.slow
def test_2000_documents_killed_twice_become_the_same_file(checkpoint, tmp_path):
    draw, file = random.Random(4), tmp_path / "documents.jsonl"
    rows = [json.dumps({"text": text_of(draw, length=draw.randint(20, 90))}) for _ in range(2000)]
    rows[500] = "no JSON"
    file.write_text("\n".join(rows) + "\n")
    words = ["predict", "task=embed", f"checkpoint={checkpoint}", f"file={file}", "tokens_per_batch=512"]
    assert main([*words, f"folder={tmp_path / 'undisturbed'}"]) == 0
    out = tmp_path / "out"
    command = [sys.executable, "-m", "nystromformer", *words, f"folder={out}"]
    for reached in (300, 1100):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while rows_done(out) < reached:
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
        assert process.wait(60) == -9
        assert rows_done(out) < 2000
    assert main([*words, f"folder={out}"]) == 0
    for name in ("vectors.npy", "ids.jsonl", "errors.jsonl"):
        assert (out / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()
    assert np.load(out / "vectors.npy").shape == (1999, 32)


def rows_done(folder: Path) -> int:
    path = folder / "progress.json"
    return json.loads(path.read_text())["rows"] if path.exists() else 0


@pytest.mark.parametrize(
    ("module", "config", "said"),
    [
        (
            "Pooling",
            {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
            "pooling by cls_token",
        ),
        ("Pooling", {"pooling_mode": ["mean", "max"]}, "pooling by mean and max"),
        ("Dense", {}, "a module Dense"),
    ],
)
def test_an_embedder_with_other_vectors_is_refused_before_anything_is_written(
    module, config, said, checkpoint, tmp_path, capsys
):
    folder = tmp_path / "theirs"
    shutil.copytree(checkpoint, folder)
    kinds = [{"path": "", "type": "st.Transformer"}, {"path": "1_It", "type": f"st.{module}"}]
    (folder / "modules.json").write_text(json.dumps(kinds))
    (folder / "1_It").mkdir()
    (folder / "1_It/config.json").write_text(json.dumps(config))
    file = tmp_path / "notes.jsonl"
    file.write_text('{"text": "a film"}\n')
    words = ["predict", f"checkpoint={folder}", f"file={file}", "task=embed", f"folder={tmp_path / 'out'}"]
    assert main(words) == 2
    assert f"makes its vectors with {said}, and this project with the mean" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (folder / "1_It/config.json").write_text('{"pooling_mode": "mean"}')
    assert main(words) == (2 if module == "Dense" else 0)


def test_what_predict_cannot_do_with_vectors_is_one_line(checkpoint, tmp_path, capsys):
    file = tmp_path / "notes.jsonl"
    file.write_text('{"text": "a film"}\n')
    words = ["predict", f"checkpoint={checkpoint}", f"file={file}", f"folder={tmp_path / 'out'}"]
    assert main(words) == 2
    assert "is no fine-tuned model" in capsys.readouterr().err
    assert main([*words, "model.attention=softmax"]) == 2
    assert "model.* is for vectors from any checkpoint: write task=embed" in capsys.readouterr().err
    assert main([*words, "tokenizer_path=somewhere"]) == 2
    assert "tokenizer_path is for vectors from any checkpoint" in capsys.readouterr().err
    bare = tmp_path / "bare"
    shutil.copytree(checkpoint, bare, ignore=shutil.ignore_patterns("token*"))
    of_bare = [
        "predict",
        "task=embed",
        f"checkpoint={bare}",
        f"file={file}",
        f"folder={tmp_path / 'bare_out'}",
    ]
    assert main(of_bare) == 2
    assert "has no tokenizer that can be opened: write tokenizer_path" in re.sub(
        r" \(.*\)", "", capsys.readouterr().err
    )
    assert main([*of_bare, f"tokenizer_path={checkpoint}"]) == 0
    assert main([*words, "task=custom"]) == 2
    assert "task='custom' is unknown: write embed, or null" in capsys.readouterr().err
    file.write_text('{"text": null}\n')
    assert main([*words, "task=embed"]) == 2
    assert "has no column 'text'" in capsys.readouterr().err
