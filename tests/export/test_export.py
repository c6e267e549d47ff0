"""Exported models compute what PyTorch computes, at every length, with padding, and are whole or absent."""

from __future__ import annotations

import json

import pytest
import torch

from nystromformer import export as export_module
from nystromformer.cli import main
from nystromformer.export import onnx_file
from nystromformer.export.heads import HEADS, open_recordable
from nystromformer.settings.export import ExportSettings
from tests.export.conftest import NEEDED

LENGTHS = [1, 2, 5, 8, 9, 16, 17, 31, 64, 100]
"""Below, at and above 8 landmarks, most no multiple of it; 100 is the longest."""


def lengths_agree(run, folder, head=None):
    model = open_recordable(ExportSettings(checkpoint=str(folder), target="x", head=head))
    model.lengths = lambda: LENGTHS
    assert model.differences(run).largest < 1e-4
    return model


def exported(folder, target, *words) -> None:
    assert main(["export", f"checkpoint={folder}", f"target={target}", *words]) == 0


@NEEDED
@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_every_head_gives_pytorchs_numbers_in_onnx_runtime(head, make_model, tmp_path, capsys):
    folder = make_model(head)
    exported(folder, tmp_path / "out")
    out = capsys.readouterr().out
    assert f"{head} head" in out
    assert "opset 18" in out
    run = onnx_file.Session(tmp_path / "out/model.onnx")
    model = lengths_agree(run, folder)
    assert len(run(*model.batch(9))) == len(model.outputs)


@NEEDED
@pytest.mark.parametrize(
    "changes",
    [pytest.param({"neighbours": 4}, marks=pytest.mark.slow), {"attention": "softmax"}],
    ids=["near", "exact"],
)
def test_so_do_the_mechanisms(changes, make_model, tmp_path):
    folder = make_model("encoder", **changes)
    exported(folder, tmp_path / "out")
    lengths_agree(onnx_file.Session(tmp_path / "out/model.onnx"), folder)


@NEEDED
def test_int8_is_smaller_and_near(make_model, tmp_path, capsys):
    folder = make_model("sequence", hidden_size=128, num_landmarks=16)
    exported(folder, tmp_path / "out", "int8=true")
    assert "dynamic int8" in capsys.readouterr().out
    whole, small = (tmp_path / "out" / name for name in ("model.onnx", "model.int8.onnx"))
    assert small.stat().st_size < 0.75 * whole.stat().st_size
    model = open_recordable(ExportSettings(checkpoint=str(folder), target="x"))
    assert 0 < model.differences(onnx_file.Session(small)).relative < 0.25
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"config.json", "tokenizer.json"}
    assert json.loads((tmp_path / "out/config.json").read_text())["architectures"] == [
        "NystromformerForSequenceClassification"
    ]


@pytest.mark.parametrize(
    ("operator", "neighbours"),
    [(False, None), (True, None), pytest.param(False, 16, marks=pytest.mark.slow), (True, 16)],
)
def test_a_program_of_torch_export_does_too(operator, neighbours, make_model, tmp_path, capsys):
    folder = make_model("masked_lm", neighbours=neighbours, num_landmarks=16)
    exported(folder, tmp_path / "out", "format=torch", f"operator={operator}")
    assert ("with nystromformer imported" in capsys.readouterr().out) == operator
    program = torch.export.load(tmp_path / "out/model.pt2")
    assert ("nystromformer." in program.graph_module.code) == operator
    lengths_agree(program.module(), folder)


def test_the_encoder_of_another_head_is_exported_alone(make_model, tmp_path, capsys):
    folder = make_model("pretraining")
    exported(folder, tmp_path / "out", "format=torch", "head=encoder")
    assert "gives last_hidden_state, pooler_output" in capsys.readouterr().out
    without_pooler = make_model("tokens")
    exported(without_pooler, tmp_path / "tokens", "format=torch", "head=encoder")
    assert "gives last_hidden_state\n" in capsys.readouterr().out


def test_a_file_that_computes_something_else_is_not_left(make_model, tmp_path, monkeypatch, capsys):
    real = torch.export.load

    def damaged(path):
        program = real(path)
        next(iter(program.state_dict.values())).data.mul_(2)
        return program

    monkeypatch.setattr(export_module.torch.export, "load", damaged)
    words = [f"checkpoint={make_model()}", f"target={tmp_path / 'out'}", "format=torch"]
    assert main(["export", *words]) == 2
    assert "nothing is written" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("head", "changes", "words", "told"),
    [
        ("masked_lm", {"attention": "longformer"}, [], "attention=longformer"),
        ("masked_lm", {}, ["head=sequence"], "no weights for head=sequence"),
        ("masked_lm", {}, ["head=cat"], "head='cat' is unknown"),
        ("masked_lm", {}, ["format=tf"], "format='tf' is unknown"),
        ("masked_lm", {}, ["int8=true"], "int8=true is for format=onnx"),
        ("masked_lm", {}, ["tolerance=0"], "tolerance=0"),
    ],
)
def test_what_cannot_be_exported_is_told_in_one_line(
    head, changes, words, told, make_model, tmp_path, capsys
):
    folder = make_model(head, **changes)
    line = [f"checkpoint={folder}", f"target={tmp_path / 'out'}", "format=torch", *words]
    capsys.readouterr()  # what saving the model printed
    assert main(["export", *line]) == 2
    err = capsys.readouterr().err
    assert told in err
    assert err.count("nystromformer: ") == 1
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "told"), [('{"model_type": "bert"}', "convert source="), (None, "no checkpoint")]
)
def test_other_checkpoints_are_told(content, told, tmp_path, capsys):
    (tmp_path / "model").mkdir()
    if content:
        (tmp_path / "model/config.json").write_text(content)
    words = [f"checkpoint={tmp_path / 'model'}", f"target={tmp_path / 'out'}", "format=torch"]
    assert main(["export", *words]) == 2
    assert told in capsys.readouterr().err


def test_missing_packages_are_told_with_the_extra(make_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(onnx_file, "missing_packages", lambda: ["onnx", "onnxruntime"])
    assert main(["export", f"checkpoint={make_model()}", f"target={tmp_path / 'out'}"]) == 2
    assert "needs onnx and onnxruntime" in (err := capsys.readouterr().err)
    assert "pip install 'nystromformer[onnx]'" in err


def test_onnx_has_no_singular_values(make_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(onnx_file, "missing_packages", list)
    folder = make_model(pinv_iterations=None)
    assert main(["export", f"checkpoint={folder}", f"target={tmp_path / 'out'}"]) == 2
    assert "pinv_iterations=null" in capsys.readouterr().err


def test_a_target_that_holds_something_is_left_alone(make_model, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["export", f"checkpoint={make_model()}", f"target={tmp_path}", "format=torch"]) == 2
    assert "holds notes.txt already" in capsys.readouterr().err
