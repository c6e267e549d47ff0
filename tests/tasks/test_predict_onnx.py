"""An exported file in place of the model it was made from: the same predictions, and its own accuracy."""

import json
from pathlib import Path

import pytest

from nystromformer.cli import main
from tests.export.conftest import NEEDED
from tests.tasks.test_predict import KINDS, lines_of, model_of

pytestmark = NEEDED


def exported(kind: str, checkpoint: Path, folder: Path, *words: str) -> tuple[Path, Path]:
    """A model of the kind, and the folder that `export` wrote of it."""
    task, *_ = KINDS[kind]
    (folder / "model").mkdir()
    model = model_of(task, checkpoint, folder / "model")
    assert main(["export", f"checkpoint={model}", f"target={folder / 'exported'}", *words]) == 0
    return model, folder / "exported"


def close(one, other) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    return one == (pytest.approx(other, abs=1e-4) if isinstance(other, float) else other)


@pytest.mark.parametrize(
    "kind",
    ["classes", *(pytest.param(k, marks=pytest.mark.slow) for k in KINDS if k not in ("classes", "embed"))],
)
def test_predictions_of_the_file_are_those_of_the_model(kind, checkpoint, tmp_path):
    model, target = exported(kind, checkpoint, tmp_path)
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(KINDS[kind][1](number)) + "\n" for number in range(20)))
    command = ["predict", f"checkpoint={model}", f"file={file}"]
    assert main([*command, f"folder={tmp_path / 'of_model'}"]) == 0
    assert main([*command, f"folder={tmp_path / 'of_file'}", f"onnx={target / 'model.onnx'}"]) == 0
    of_model, of_file = (lines_of(tmp_path / name / "predictions.jsonl") for name in ("of_model", "of_file"))
    assert len(of_model) == 20
    assert close(of_file, of_model)


def test_int8_has_figures_of_its_own_and_is_no_going_on_of_others(checkpoint, tmp_path, capsys):
    model, target = exported("classes", checkpoint, tmp_path, "int8=true")
    file = tmp_path / "rows.jsonl"
    rows = [{**KINDS["classes"][1](number), "label": "ab"[number % 2]} for number in range(20)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    of = [f"checkpoint={model}", f"file={file}"]
    small, whole = (f"onnx={target / name}" for name in ("model.int8.onnx", "model.onnx"))
    assert main(["evaluate", *of, small, f"folder={tmp_path / 'evaluated'}"]) == 0
    assert "accuracy" in capsys.readouterr().out
    place = f"folder={tmp_path / 'predicted'}"
    assert main(["predict", *of, small, place]) == 0
    of_small = (tmp_path / "predicted/predictions.jsonl").read_bytes()
    capsys.readouterr()
    assert main(["predict", *of, whole, place]) == 2
    assert "holds predictions of another model than onnx=" in capsys.readouterr().err
    (target / "model.int8.onnx").rename(tmp_path / "moved.onnx")
    assert main(["predict", *of, small, place]) == 2  # all is predicted, and nothing has to be opened
    assert f"{small} is no file" in capsys.readouterr().err
    assert main(["evaluate", of[0], f"file={tmp_path}", whole, f"folder={tmp_path / 'ranked'}"]) == 2
    assert "a folder of documents is ranked by the weights" in capsys.readouterr().err
    assert main(["predict", *of, whole, f"folder={tmp_path / 'whole'}"]) == 0
    assert (tmp_path / "whole/predictions.jsonl").read_bytes() != of_small


@pytest.mark.parametrize(
    ("kind", "name"), [("classes", "rows.jsonl"), ("classes", "gone.onnx"), ("embed", "x.onnx")]
)
def test_what_is_no_such_file_is_one_line(kind, name, checkpoint, tmp_path, capsys):
    (tmp_path / "model").mkdir()
    model = model_of(KINDS[kind][0], checkpoint, tmp_path / "model")
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(KINDS[kind][1](0)) + "\n")
    words = [f"checkpoint={model}", f"file={file}", f"onnx={tmp_path / name}", f"folder={tmp_path / 'out'}"]
    assert main(["predict", *words]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("nystromformer:")]
    assert f"onnx={tmp_path / name}" in line
    assert not (tmp_path / "out").exists()
