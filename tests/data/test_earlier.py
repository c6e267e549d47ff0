"""Prepared folders without their sources, of other content, and of other versions."""

import json
import os
import shutil
from pathlib import Path

import pytest

from nystromformer.cli import main
from nystromformer.data import plan, unfinished
from nystromformer.data import prepare as preparing
from nystromformer.data.prepare import prepare
from nystromformer.data.storage import PreparedData
from nystromformer.errors import UserError
from nystromformer.files import ContentHashes
from nystromformer.settings import PrepareSettings, TokenizerSettings

from .conftest import made_up_documents, text_settings


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(made_up_documents(60)))
    return path


@pytest.fixture
def settings(source: Path, tmp_path: Path) -> PrepareSettings:
    return text_settings(source, tmp_path / "out", shard_megabytes=0.02)


@pytest.fixture
def made(settings: PrepareSettings) -> PreparedData:
    return prepare(settings, show_progress=False)


def one_line(capsys: pytest.CaptureFixture[str], *parts: str) -> None:
    lines = [line for line in capsys.readouterr().err.splitlines() if all(part in line for part in parts)]
    assert len(lines) == 1, parts


def test_a_folder_stands_in_for_its_sources_and_says_so(settings, source: Path, made: PreparedData, capsys):
    source.unlink()
    assert prepare(settings).folder == made.folder
    error = capsys.readouterr().err
    assert "a.txt' does not exist" in error
    assert f"{made.folder} was made by the same settings and is taken" in error
    settings.max_length = 32  # nothing was made by these
    with pytest.raises(UserError, match=r"a\.txt' does not exist"):
        prepare(settings)


def test_a_tokenizer_that_is_gone_is_a_source_too(settings, made: PreparedData, tmp_path: Path, capsys):
    shutil.copytree(made.folder / "tokenizer", tmp_path / "tokenizer")
    settings.tokenizer = TokenizerSettings(path=str(tmp_path / "tokenizer"))
    first = prepare(settings, show_progress=False)
    assert first.folder != made.folder
    shutil.rmtree(tmp_path / "tokenizer")
    assert prepare(settings).folder == first.folder
    one_line(capsys, "is no tokenizer that can be opened")


def test_data_prepared_looks_at_no_source(
    source: Path, made: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    moved = tmp_path / "elsewhere" / "data"
    shutil.copytree(made.folder, moved)
    shutil.rmtree(made.folder)
    source.unlink()
    monkeypatch.setattr(preparing, "plan", None)
    settings = PrepareSettings(max_length=64)
    settings.data.prepared = str(moved)
    taken = prepare(settings)
    assert taken.folder == moved
    assert taken.content == made.content


def test_data_prepared_is_refused_where_it_does_not_fit(settings, made: PreparedData, tmp_path: Path):
    def message(**data: object) -> str:
        wanted = text_settings("gone.txt", tmp_path, **data)
        with pytest.raises(UserError) as caught:
            prepare(wanted)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "is no prepared folder: write the folder that" in message(prepared=str(tmp_path / "no"))
    assert f"write one of those in it: {made.folder.name}" in message(prepared=str(made.folder.parent))
    (made.folder / "train" / "00000.arrow").unlink()
    assert "00000.arrow is missing" in message(prepared=str(made.folder))


def test_rows_longer_than_the_model_and_ids_of_other_words_are_refused(
    settings, made: PreparedData, tmp_path
):
    shorter = PrepareSettings(max_length=32)
    shorter.data.prepared = str(made.folder)
    with pytest.raises(UserError, match=r"rows of up to 64 tokens.*write model\.max_length=64"):
        prepare(shorter)
    tokenizer = made.tokenizer()
    tokenizer.save_pretrained(tmp_path / "same")
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(tmp_path / "other")
    settings.data.prepared = str(made.folder)
    settings.tokenizer = TokenizerSettings(path=str(tmp_path / "same"))
    assert prepare(settings).folder == made.folder
    settings.tokenizer = TokenizerSettings(path=str(tmp_path / "other"))
    with pytest.raises(UserError, match="was made with another tokenizer"):
        prepare(settings)


def test_a_tokenizer_out_of_reach_is_known_by_the_name_it_was_taken_by(
    settings, made: PreparedData, tmp_path: Path
):
    shutil.copytree(made.folder / "tokenizer", tmp_path / "taken")
    settings.tokenizer = TokenizerSettings(path=str(tmp_path / "taken"))
    settings.data.prepared = str(prepare(settings, show_progress=False).folder)
    shutil.rmtree(tmp_path / "taken")
    prepare(settings, show_progress=False)
    settings.tokenizer.path = str(tmp_path / "another")
    with pytest.raises(UserError, match="is no tokenizer that can be opened"):
        prepare(settings, show_progress=False)


def test_shorter_rows_than_the_model_takes_are_told(settings, made: PreparedData, capsys):
    settings.max_length = 128
    settings.data.prepared = str(made.folder)
    prepare(settings)
    one_line(capsys, "rows of at most 64 tokens", "model.max_length=128")


def test_the_command_line_takes_it(made: PreparedData, capsys):
    words = [f"data.prepared={made.folder}", "data.verify=true"]
    assert main(["prepare", *words]) == 0
    assert capsys.readouterr().out.splitlines()[0] == str(made.folder)
    assert main(["prepare", *words, "shard=1/2"]) == 2
    assert "is prepared already" in capsys.readouterr().err


def test_what_changed_since_is_named_before_it_is_made_anew(
    settings, source: Path, made: PreparedData, capsys
):
    source.write_text("\n\n".join(made_up_documents(50)))
    other = prepare(settings)
    assert other.folder != made.folder
    one_line(capsys, str(made.folder), "a.txt has changed", "preparing anew", f"data.prepared={made.folder}")
    prepare(settings)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("package", ["sentencex", "tokenizers"])
def test_another_version_of_what_splits_and_encodes_makes_another(
    settings, made: PreparedData, package: str, monkeypatch: pytest.MonkeyPatch, capsys
):
    now = made.manifest["identity"]["packages"][package]
    real = plan.version
    monkeypatch.setattr(plan, "version", lambda name: "99" if name == package else real(name))
    other = prepare(settings)
    assert other.folder != made.folder
    assert other.content == made.content  # what a resumed run compares
    one_line(capsys, f"{package} is 99 and was {now}")


def test_a_folder_of_an_earlier_version_is_told_and_can_be_taken(settings, made: PreparedData, capsys):
    """As the versions left it that knew files by size and time."""
    manifest = json.loads((made.folder / "manifest.json").read_text())
    identity = manifest["identity"]
    del identity["identity_version"], identity["packages"], identity["inputs"]
    for part in manifest["sources"]:
        part["inputs"] = [{"name": "a.txt", "size": 9, "version": "9 bytes of 9 ns"}]
    del manifest["report"]["notes"], manifest["settings"]["tokenizer"]["character_coverage"]
    old = made.folder.with_name("text-0123456789ab")
    made.folder.rename(old)
    (old / "manifest.json").write_text(json.dumps(manifest))
    new = prepare(settings)
    assert new.folder == made.folder
    one_line(capsys, str(old), "an earlier version", "preparing anew", f"data.prepared={old}")
    settings.data.prepared = str(old)
    assert prepare(settings).content == new.content
    before = (old / "train" / "00001.arrow").read_bytes()
    (old / "train" / "00001.arrow").unlink()
    assert main(["prepare", f"repair={old}"]) == 0
    assert (old / "train" / "00001.arrow").read_bytes() == before


def test_a_file_that_changes_while_it_is_prepared_is_named_and_leaves_no_wrong_block(
    settings, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Changed once the tokenizer is there and changed back: what it left is not taken for the first's."""
    before = source.read_bytes()
    make_blocks = preparing.make_blocks

    def change_first(*arguments: object, **options: object) -> object:
        source.write_bytes(before.replace(b"a", b"e"))
        return make_blocks(*arguments, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(preparing, "make_blocks", change_first)
        with pytest.raises(UserError, match=r"a\.txt changed while it was prepared"):
            prepare(settings, show_progress=False)
    source.write_bytes(before)
    after = prepare(settings, show_progress=False)
    settings.data.folder = str(tmp_path / "fresh")
    assert prepare(settings, show_progress=False).content == after.content


def test_a_file_that_changes_under_the_tokenizer_s_sample_leaves_no_tokenizer(
    settings, source: Path, monkeypatch: pytest.MonkeyPatch
):
    before = source.read_bytes()
    survey = unfinished.survey

    def change_after(*arguments: object, **options: object) -> object:
        found = survey(*arguments, **options)  # type: ignore[arg-type]
        source.write_bytes(before.replace(b"a", b"e"))
        return found

    monkeypatch.setattr(unfinished, "survey", change_after)
    with pytest.raises(UserError, match=r"a\.txt changed while it was prepared"):
        prepare(settings, show_progress=False)
    assert not list(Path(settings.data.folder).glob("*/tokenizer"))
    assert not list(Path(settings.data.folder).glob(".unfinished-*/tokenizer"))


def test_a_touch_while_it_is_prepared_changes_nothing(
    settings, source: Path, made: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    make_blocks = preparing.make_blocks

    def touch_first(*arguments: object, **options: object) -> object:
        source.touch()
        return make_blocks(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(preparing, "make_blocks", touch_first)
    settings.data.folder = str(tmp_path / "again")
    assert prepare(settings, show_progress=False).content == made.content


def test_a_file_is_read_for_its_hash_once(settings, source: Path, monkeypatch: pytest.MonkeyPatch):
    read: list[Path] = []
    real = plan.ContentHashes.of_all.__globals__["sha256_of_file"]

    def counted(path: Path) -> str:
        read.append(path)
        return real(path)

    monkeypatch.setattr("nystromformer.files.sha256_of_file", counted)
    prepare(settings, show_progress=False)
    prepare(settings, show_progress=False)
    assert read == [source.resolve()]


def test_a_file_changed_under_its_old_size_and_time_is_seen(settings, source: Path, made: PreparedData):
    before = source.stat()
    with source.open("r+b") as file:
        file.write(b"E")
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (source.stat().st_size, source.stat().st_ino) == (before.st_size, before.st_ino)
    assert prepare(settings, show_progress=False).folder != made.folder


def test_much_to_be_read_for_its_hash_is_told_once(
    settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(plan, "_WORTH_SAYING", 1000)
    prepare(settings, show_progress=False)
    prepare(settings, show_progress=False)
    one_line(capsys, "GB once, to know the sources by what they hold")


def test_hashes_of_many_files_are_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    paths = [tmp_path / str(number) for number in range(5)]
    for path in paths:
        path.write_text(path.name)
    written = []
    monkeypatch.setattr(
        "nystromformer.files.write_atomically", lambda path, text: written.append(json.loads(text))
    )
    hashes = ContentHashes(tmp_path / "memory.json")
    digests = hashes.of_all(paths)
    assert [len(content) for content in written] == [5]
    assert hashes.of_all(paths) == digests == [ContentHashes().of(path) for path in paths]
    assert len(written) == 1
    with pytest.raises(OSError, match="gone"):
        ContentHashes(tmp_path / "other.json").of_all([paths[0], tmp_path / "gone"])
    assert len(written[-1]) == 1  # what was read before is kept
