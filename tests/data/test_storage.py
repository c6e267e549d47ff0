import json
import shutil
from pathlib import Path

import pytest

from nystromformer.data import storage
from nystromformer.data.storage import PreparedData
from nystromformer.errors import UserError


@pytest.fixture
def copy(prepared: PreparedData, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared.folder, tmp_path / "copy"))


def test_a_whole_folder_opens_and_verifies(copy: Path):
    data = PreparedData.open(copy)
    data.verify()
    assert data.unigram_counts.shape == (data.manifest["vocab_size"],)
    assert data.unigram_counts.sum() == data.manifest["counts"]["train"]["tokens"]
    assert len(data.split("train")) == data.manifest["counts"]["train"]["chunks"]
    with pytest.raises(UserError, match="split='test' is unknown"):
        data.split("test")


@pytest.mark.parametrize(
    "name", ["train/00000.arrow", "tokenizer/tokenizer.json", "unigram_counts.npy", "report.json"]
)
def test_a_missing_file_is_named_with_the_command_that_makes_it(copy: Path, name: str):
    (copy / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing: `nystromformer prepare repair={copy}`"):
        PreparedData.open(copy)


def test_without_a_manifest_the_folder_is_to_be_prepared_again(copy: Path):
    (copy / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"manifest\.json is missing: delete the folder"):
        PreparedData.open(copy)


def test_a_shortened_file_is_named(copy: Path):
    path = copy / "train" / "00000.arrow"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"00000\.arrow has \d+ bytes instead of \d+: .*prepare repair="):
        PreparedData.open(copy)


def test_a_changed_byte_is_found_by_verify(copy: Path):
    path = copy / "validation" / "00000.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"validation/00000\.arrow is damaged"):
        PreparedData.open(copy).verify()


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"format_version": 1}'])
def test_a_damaged_manifest_is_named(copy: Path, content: str):
    (copy / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        PreparedData.open(copy)


def test_another_format_is_refused(copy: Path):
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"format_version": 99}))
    with pytest.raises(UserError, match="has format 99"):
        PreparedData.open(copy)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    locked = storage.locked(tmp_path / "file" / "a")
    with pytest.raises(UserError, match=r"data\.folder='.*file' cannot be written to"), locked:
        pass
