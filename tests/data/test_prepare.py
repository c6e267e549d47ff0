import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nystromformer.data import reading
from nystromformer.data.documents import text_hash, validation_below
from nystromformer.data.prepare import prepare
from nystromformer.data.segmentation import split_sentences
from nystromformer.data.storage import PreparedData
from nystromformer.errors import UserError
from nystromformer.settings import DataSettings, PrepareSettings, TokenizerSettings

from .conftest import made_up_documents, text_settings


def prepare_quietly(settings: PrepareSettings) -> PreparedData:
    return prepare(settings, show_progress=False)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_chunks_and_the_report_account_for_every_token(prepared: PreparedData, corpus_file: Path):
    tokenizer = prepared.tokenizer()
    expected = dict.fromkeys(("train", "validation"), 0)
    for document in corpus_file.read_text().split("\n\n"):
        split = "validation" if text_hash(document) < validation_below(0.1) else "train"
        sentences = split_sentences(document)
        expected[split] += sum(len(tokenizer(s, add_special_tokens=False)["input_ids"]) for s in sentences)
    for split in ("train", "validation"):
        counts = prepared.manifest["counts"][split]
        assert counts["tokens"] + counts["dropped_tokens"] == expected[split]
        chunks = prepared.split(split)
        stored = [chunks[i] for i in range(len(chunks))]
        assert sum(len(tokens) for tokens, _ in stored) == counts["tokens"]
        assert sum(len(lengths) for _, lengths in stored) == counts["sentences"]
        assert all(lengths.sum() == len(tokens) and len(lengths) >= 2 for tokens, lengths in stored)


def test_the_bytes_are_the_same_for_any_number_of_workers(
    corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folders = []
    for workers, size in ((1, 2**20), (2, 20_000)):
        monkeypatch.setattr(reading, "_BATCH_BYTES", size)
        folders.append(
            prepare_quietly(text_settings(corpus_file, tmp_path / str(workers), workers=workers)).folder
        )
    assert files_of(folders[0]) == files_of(folders[1])


def test_the_same_settings_find_what_is_there(prepared: PreparedData, corpus_file: Path):
    before = (prepared.folder / "manifest.json").stat().st_mtime_ns
    again = text_settings(
        corpus_file,
        prepared.folder.parent,
        # These matter when examples are drawn, or not at all.
        masking="ngram",
        masking_probability=0.3,
        workers=2,
        streaming=False,
    )
    assert prepare_quietly(again).folder == prepared.folder
    assert (prepared.folder / "manifest.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "change",
    [
        "data.validation_fraction=0.2",
        "data.short_sequence_probability=0.5",
        "data.max_documents=50",
        "data.language=de",
        "tokenizer.vocab_size=400",
        "tokenizer.lowercase=",
        "max_length=32",
        "seed=1",
    ],
)
def test_changed_settings_make_another(
    prepared: PreparedData, corpus_file: Path, tmp_path: Path, change: str
):
    settings = text_settings(corpus_file, tmp_path)
    name, value = change.split("=")
    *parents, leaf = name.split(".")
    part = getattr(settings, parents[0]) if parents else settings
    setattr(
        part, leaf, type(getattr(part, leaf) or 0)(float(value)) if value[:1].isdigit() else value or False
    )
    assert prepare_quietly(settings).folder.name != prepared.folder.name


def test_a_changed_file_makes_another(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(made_up_documents(20)))
    settings = text_settings(path, tmp_path / "out")
    first = prepare_quietly(settings).folder
    changed = path.read_bytes().replace(b"a", b"e", 1)
    path.write_bytes(changed)
    os.utime(path, ns=(0, 0))  # as old as can be, and of the same size: its content tells
    second = prepare_quietly(settings).folder
    assert first != second


def test_a_touched_copied_moved_or_renamed_file_is_the_same(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(made_up_documents(20)))
    out = tmp_path / "out"
    first = prepare_quietly(text_settings(path, out)).folder
    os.utime(path)
    assert prepare_quietly(text_settings(path, out)).folder == first
    copy = tmp_path / "other" / "b.TXT"
    copy.parent.mkdir()
    shutil.copy(path, copy)
    path.unlink()
    assert prepare_quietly(text_settings(copy, out)).folder == first


def test_a_tokenizer_by_path_is_known_by_its_content(
    prepared: PreparedData, corpus_file: Path, tmp_path: Path
):
    settings = text_settings(corpus_file, tmp_path)
    settings.tokenizer = TokenizerSettings(path=str(prepared.folder / "tokenizer"))
    taken = prepare_quietly(settings)
    assert taken.folder.name != prepared.folder.name
    assert taken.manifest["tokenizer_sha256"] == prepared.manifest["tokenizer_sha256"]
    assert taken.manifest["counts"] == prepared.manifest["counts"]


def test_duplicates_are_dropped_and_splits_share_no_document(tmp_path: Path):
    documents = made_up_documents(60)
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in documents * 2))
    prepared = prepare_quietly(text_settings(path, tmp_path / "out", validation_fraction=0.5))
    assert prepared.manifest["documents_read"] == 120
    assert prepared.manifest["duplicate_documents_dropped"] == 60
    counts = prepared.manifest["counts"]
    assert sum(counts[split]["documents"] + counts[split]["dropped_documents"] for split in counts) == 60
    seen = {}
    for split in counts:
        chunks = prepared.split(split)
        seen[split] = {chunks[i][0].tobytes() for i in range(len(chunks))}
    assert not seen["train"] & seen["validation"]


def test_special_tokens_in_a_document_are_text(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(f"{text} See [MASK] and [SEP]. So [CLS]." for text in made_up_documents(20)))
    prepared = prepare_quietly(text_settings(path, tmp_path / "out"))
    for split in ("train", "validation"):
        chunks = prepared.split(split)
        tokens = np.concatenate([chunks[i][0] for i in range(len(chunks))])
        assert not np.isin(tokens, [0, 2, 3, 4]).any()


@pytest.mark.parametrize("documents", [["One. Two."], ["Only one sentence"] * 5, ["One. Two.", "Three."]])
def test_a_corpus_without_two_usable_documents_is_refused(tmp_path: Path, documents: list[str]):
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(documents))
    with pytest.raises(UserError, match="too small"):
        prepare_quietly(text_settings(path, tmp_path / "out"))
    assert not [p for p in (tmp_path / "out").iterdir() if p.is_dir()]


@pytest.mark.parametrize("fraction", [1e-6, 1 - 1e-6])
def test_two_usable_documents_are_enough(tmp_path: Path, fraction: float):
    path = tmp_path / "a.txt"
    path.write_text("One here. Two here.\n\nThree here. Four here.")
    prepared = prepare_quietly(text_settings(path, tmp_path / "out", validation_fraction=fraction))
    assert [len(prepared.split(split)) for split in ("train", "validation")] == [1, 1]


def test_impossible_settings_are_refused_in_a_line_each(tmp_path: Path):
    settings = PrepareSettings(DataSettings(corpus="c4", workers=-1))
    with pytest.raises(UserError, match=r"data\.corpus='c4' is unknown.*\ndata\.workers=-1"):
        prepare_quietly(settings)


def test_an_unwritable_folder_is_named(corpus_file: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data\.folder='.*file' cannot be written to"):
        prepare_quietly(text_settings(corpus_file, tmp_path / "file"))


def test_progress_goes_to_stderr_in_plain_lines(
    corpus_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    prepare(text_settings(corpus_file, tmp_path))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "preparing: 400 documents" in captured.err
    assert "\x1b" not in captured.err


def test_real_text(test_data: Path, tmp_path: Path):
    settings = text_settings(test_data / "text" / "wikipedia_valid.txt", tmp_path, validation_fraction=0.02)
    settings.data.max_documents = 300
    prepared = prepare_quietly(settings)
    counts = prepared.manifest["counts"]["train"]
    assert counts["dropped_tokens"] < 0.05 * counts["tokens"]
    assert counts["tokens"] / counts["chunks"] > 0.6 * 61


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    documents=st.lists(
        st.text(st.characters() | st.sampled_from(" .\n!?[]\ud800\u2028")) | st.just("A b. C d. E."),
        max_size=12,
    ),
    max_length=st.integers(8, 40),
)
def test_any_documents_prepare_or_are_refused(
    prepared: PreparedData, tmp_path_factory: pytest.TempPathFactory, documents: list[str], max_length: int
):
    folder = tmp_path_factory.mktemp("fuzz")
    path = folder / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in documents))
    settings = text_settings(path, folder / "out")
    settings.tokenizer = TokenizerSettings(path=str(prepared.folder / "tokenizer"))
    settings.max_length = max_length
    try:
        result = prepare_quietly(settings)
    except UserError as error:
        if "\n" in str(error):
            raise
        return
    assert min(len(result.split(split)) for split in ("train", "validation")) >= 1
    result.verify()
