"""A checkpoint is known by its weights and configuration, wherever it lies and whenever it was written."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from nystromformer.cli import main
from nystromformer.files import ContentHashes
from nystromformer.model.source import content_of_checkpoint
from tests.model.test_conversion import nystromformer


@pytest.fixture
def folder(tmp_path) -> Path:
    nystromformer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_copy_is_the_same_and_another_weight_is_not(folder, tmp_path):
    content = content_of_checkpoint(str(folder))
    os.utime(folder / "model.safetensors")
    (folder / "README.md").write_text("a card")
    (folder / "tokenizer.json").write_text("{}")
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    assert content_of_checkpoint(str(tmp_path / "copy")) == content
    whole = bytearray((folder / "model.safetensors").read_bytes())
    whole[-1] ^= 1
    (folder / "model.safetensors").write_bytes(whole)
    assert content_of_checkpoint(str(folder)) != content


@pytest.mark.parametrize(
    ("key", "value", "same"),
    [("transformers_version", "99.0", True), ("_name_or_path", "x", True), ("layer_norm_eps", 0.1, False)],
)
def test_who_saved_it_says_nothing_and_its_shape_does(folder, key, value, same):
    content = content_of_checkpoint(str(folder))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(dict(sorted({**config, key: value}.items()))))
    assert (content_of_checkpoint(str(folder)) == content) is same


def test_all_shards_count(folder):
    content = content_of_checkpoint(str(folder))
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"more")
    assert content_of_checkpoint(str(folder)) != content


def test_a_file_of_the_authors_is_its_bytes(tmp_path):
    file = tmp_path / "a.model"
    torch.save({"a": torch.zeros(2)}, file)
    content = content_of_checkpoint(str(file))
    torch.save({"a": torch.ones(2)}, file)
    assert content_of_checkpoint(str(file)) != content


def test_a_hub_name_is_what_was_loaded_from_it(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert content_of_checkpoint("owner/name") is None
    repository = tmp_path / "hub/models--owner--name"
    shutil.copytree(folder, repository / "snapshots/abc")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("abc")
    assert content_of_checkpoint("owner/name") == content_of_checkpoint(str(folder))


@pytest.mark.parametrize("path", ["nowhere", "/no/such/folder", "a/b/c", "None", "", "../up", "x" * 200])
def test_what_is_not_there_has_no_content(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert content_of_checkpoint(path) is None


def test_an_empty_folder_has_none_and_a_broken_configuration_has_its_bytes(tmp_path):
    assert content_of_checkpoint(str(tmp_path), ContentHashes()) is None
    (tmp_path / "config.json").write_text("{")
    one = content_of_checkpoint(str(tmp_path))
    (tmp_path / "config.json").write_text("[1]")
    assert one != content_of_checkpoint(str(tmp_path))


def test_a_conversion_leaves_nothing_half_and_takes_no_folder_with_files(folder, tmp_path, capsys):
    """A tokenizer left of another model would be taken for the new one's."""
    target = tmp_path / "target"
    words = ["convert", f"source={folder}", f"target={target}"]
    assert main([*words, f"tokenizer_path={tmp_path / 'none'}"]) == 2
    assert "cannot be opened" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    target.mkdir()
    (target / "tokenizer.json").write_text("{}")
    assert main(words) == 2
    assert f"target={target} holds tokenizer.json already: write another folder, or empty it" in (
        capsys.readouterr().err
    )
    (target / "tokenizer.json").unlink()
    assert main(words) == 0, "an empty folder is one to write"
    assert content_of_checkpoint(str(target)) is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "target"]
    assert ".unfinished" not in (target / "config.json").read_text()
    assert main(words) == 2
    assert "holds a model already" in capsys.readouterr().err
    assert main([*words, f"target={folder / 'config.json'}"]) == 2
    assert "is a file: write a folder" in capsys.readouterr().err
