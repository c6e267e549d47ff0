"""The commands and the Python of docs/onnx.md run, on a tiny model."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from nystromformer.cli import main
from nystromformer.settings.export import HEADS
from tests.export.conftest import NEEDED

PAGE = (Path(__file__).parents[2] / "docs/onnx.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


@NEEDED
@pytest.mark.slow
def test_every_command_and_the_example_run(make_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("runs/demo").mkdir(parents=True)
    Path("runs/demo/model").symlink_to(make_model("pretraining"))
    commands = [shlex.split(line) for block in blocks("bash") for line in block.splitlines()]
    exports = [words[1:] for words in commands if words[1] == "export"]
    assert len(exports) == 3
    for words in exports:
        assert main(words) == 0
    assert main([*commands[-1][1:], "--cfg", "job"]) == 0
    capsys.readouterr()
    (code,) = blocks("python")
    exec(compile(code, "docs/onnx.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert Path("small/model.int8.onnx").is_file()
    assert Path("program/model.pt2").is_file()


def test_every_head_is_named():
    assert all(f"`{head}`" in PAGE for head in HEADS)
