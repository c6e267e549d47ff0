import shutil
from pathlib import Path

import pytest

from nystromformer.cli import main
from nystromformer.data.prepare import prepare
from nystromformer.data.storage import PreparedData
from nystromformer.errors import UserError

from .conftest import made_up_documents, text_settings
from .test_prepare import files_of


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The corpus' file, and a folder prepared from it in several blocks."""
    folder = tmp_path_factory.mktemp("repair")
    path = folder / "a.txt"
    path.write_text("\n\n".join(made_up_documents(150)))
    settings = text_settings(path, folder / "out", shard_megabytes=0.05, validation_fraction=0.2)
    return path, prepare(settings, show_progress=False).folder


@pytest.mark.parametrize(
    "broken",
    [
        ["train/00001.arrow"],
        ["train/00000.arrow", "validation/00002.arrow", "tokenizer/tokenizer.json"],
        ["unigram_counts.npy", "report.json", "report.html"],
        [],
    ],
)
def test_the_named_command_makes_the_damaged_files_and_no_other(
    made: tuple[Path, Path], broken: list[str], capsys: pytest.CaptureFixture[str]
):
    _, folder = made
    before = files_of(folder)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    for number, name in enumerate(broken):
        path = folder / name
        if number == 0:
            path.unlink()
        else:  # the same size: only its checksum tells
            path.write_bytes(before[name][:-1] + bytes([before[name][-1] ^ 1]))
    if broken:
        with pytest.raises(UserError) as caught:
            PreparedData.open(folder).verify()
        command = str(caught.value).split("`")[1]
        assert command == f"nystromformer prepare repair={folder}"
    assert main(["prepare", f"repair={folder}"]) == 0
    assert files_of(folder) == before
    printed = capsys.readouterr().out.split()
    assert printed == [f"{folder}/{name}" for name in sorted(broken)] if broken else "whole" in printed[-1]
    changed = {path for path, time in times.items() if path.stat().st_mtime_ns != time}
    assert changed == {folder / name for name in broken}


def test_checksums_are_compared_on_request(made: tuple[Path, Path], tmp_path: Path):
    path, folder = made
    copy = tmp_path / "out" / folder.name
    shutil.copytree(folder, copy)
    content = (copy / "train/00001.arrow").read_bytes()
    (copy / "train/00001.arrow").write_bytes(content[:-1] + b"!")
    settings = text_settings(path, copy.parent, shard_megabytes=0.05, validation_fraction=0.2)
    prepare(settings, show_progress=False)
    settings.data.verify = True
    with pytest.raises(UserError, match=r"train/00001\.arrow is damaged.*prepare repair="):
        prepare(settings, show_progress=False)


def test_another_corpus_repairs_nothing(made: tuple[Path, Path], capsys: pytest.CaptureFixture[str]):
    path, folder = made
    corpus = path.read_bytes()
    content = (folder / "train/00000.arrow").read_bytes()
    (folder / "train/00000.arrow").unlink()
    path.write_bytes(corpus.replace(b"a", b"e", 1))
    assert main(["prepare", f"repair={folder}"]) == 2
    assert "cannot be repaired: a.txt has changed; bring back" in capsys.readouterr().err
    path.write_bytes(corpus)
    (folder / "train/00000.arrow").write_bytes(content)


def test_a_folder_that_is_none_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["prepare", f"repair={tmp_path}"]) == 2
    assert "manifest.json is missing" in capsys.readouterr().err
