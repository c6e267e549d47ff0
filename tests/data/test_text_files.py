import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from nystromformer.data.documents import Document
from nystromformer.data.text_files import text_files
from nystromformer.errors import UserError

TEXT = "One line.\nAnother, naïve one.\n\n\n  \nSecond document.\r\n\nThird."
DOCUMENTS = ["One line.\nAnother, naïve one.", "Second document.", "Third."]


def read(*patterns: Path | str, field: str = "text") -> list[Document]:
    sources = text_files([str(pattern) for pattern in patterns], field)
    return [document for source in sources for document in source.documents()]


def plain(data: bytes) -> bytes:
    return data


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": plain,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_text_documents_are_separated_by_blank_lines(tmp_path: Path, suffix: str):
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(COMPRESSIONS[suffix](TEXT.encode("utf-8-sig")))
    documents = read(path)
    assert [document.text for document in documents] == DOCUMENTS
    assert [document.place for document in documents] == [f"{path}:{line}" for line in (1, 6, 8)]


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_json_lines_hold_a_document_each(tmp_path: Path, suffix: str):
    path = tmp_path / f"a.jsonl{suffix}"
    lines = [json.dumps({"body": text, "id": 1}) for text in DOCUMENTS]
    path.write_bytes(COMPRESSIONS[suffix]("\n\n".join(lines).encode()))
    documents = read(path, field="body")
    assert [document.text for document in documents] == DOCUMENTS
    assert documents[1].place == f"{path}:3"


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2", ".xz"])
def test_archives_of_several_parts_are_read_to_the_end(tmp_path: Path, suffix: str):
    path = tmp_path / f"a.txt{suffix}"
    compress = COMPRESSIONS[suffix]
    path.write_bytes(compress(b"One.\n\n") + compress(b"Two.\n"))
    assert [document.text for document in read(path)] == ["One.", "Two."]


def test_globs_are_sorted_and_no_file_is_read_twice(tmp_path: Path):
    for name in "ba":
        (tmp_path / f"{name}.txt").write_text(name)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.txt").write_text("c")
    texts = [document.text for document in read(tmp_path / "b.txt", tmp_path / "**" / "*.txt")]
    assert texts == ["b", "a", "c"]


def test_a_file_whose_name_looks_like_a_glob(tmp_path: Path):
    path = tmp_path / "a[1].txt"
    path.write_text("text")
    assert len(read(path)) == 1


def test_a_huge_document_without_blank_lines_is_continued_in_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("nystromformer.data.text_files._LARGEST_DOCUMENT", 10)
    path = tmp_path / "a.txt"
    path.write_text("12345\n12345\n12345\n\n1")
    assert [document.text for document in read(path)] == ["12345\n12345", "12345", "1"]


def message(*patterns: Path | str, field: str = "text") -> str:
    with pytest.raises(UserError) as caught:
        read(*patterns, field=field)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_missing_files_are_found_before_any_is_read(tmp_path: Path):
    good = tmp_path / "good.txt"
    good.write_text("text")
    with pytest.raises(UserError, match=r"gone\.txt' does not exist"):
        text_files([str(good), str(tmp_path / "gone.txt")])
    with pytest.raises(UserError, match=r"\*\.jsonl' matches no file"):
        text_files([str(good), str(tmp_path / "*.jsonl")])


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", b"", "a.txt is empty"),
        ("a.txt", b" \n\n", "a.txt holds no document"),
        ("a.jsonl", b"\n", "a.jsonl holds no document"),
        ("a.pdf", b"text", "a.pdf' is of an unknown kind"),
        ("a.gz", b"text", "a.gz' is of an unknown kind"),
        ("a.txt", b"one\ntw\0o", "a.txt is binary or UTF-16 (a NUL byte at offset 6)"),
        ("a.txt", "text".encode("utf-16-le"), "a.txt is binary or UTF-16"),
        ("a.txt", b"one\n\ntw\xffo", "a.txt is not UTF-8 (byte 0xff at offset 7)"),
        ("a.txt", b"\xef\xbb\xbfab\xff", "a.txt is not UTF-8 (byte 0xff at offset 5)"),
        ("a.txt.gz", b"no archive", "a.txt.gz cannot be read beyond byte 0"),
        ("a.txt.zst", b"no archive", "a.txt.zst cannot be read beyond byte 0"),
        ("a.txt.bz2", b"no archive", "a.txt.bz2 cannot be read beyond byte 0"),
        ("a.txt.xz", b"no archive", "a.txt.xz cannot be read beyond byte 0"),
        ("a.txt.bz2", bz2.compress(TEXT.encode() * 50)[:-9], "a.txt.bz2 cannot be read"),
        ("a.txt.xz", lzma.compress(TEXT.encode() * 50)[:-9], "a.txt.xz cannot be read"),
        ("a.txt.gz", gzip.compress(TEXT.encode() * 50, mtime=0)[:-9], "a.txt.gz cannot be read"),
        ("a.txt.zst", zstandard.compress(TEXT.encode() * 50)[:-9], "a.txt.zst cannot be read"),
    ],
)
def test_what_is_no_text_is_named_with_its_place(tmp_path: Path, name: str, content: bytes, expected: str):
    path = tmp_path / name
    path.write_bytes(content)
    assert expected in message(path)


def test_a_folder_is_told_how_to_be_written(tmp_path: Path):
    assert f"{tmp_path}/*.txt" in message(tmp_path)


def test_a_missing_field_is_told_which_there_are(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "a", "id": 1}')
    assert "(body, id)" in read(path)[0].fault


@pytest.mark.parametrize("suffix", COMPRESSIONS)
@pytest.mark.parametrize("change", [str.upper, str.title])
def test_endings_are_read_in_either_case(tmp_path: Path, suffix: str, change: Callable[[str], str]):
    for kind, content in ((".txt", TEXT), (".jsonl", "\n".join(json.dumps({"text": t}) for t in DOCUMENTS))):
        path = tmp_path / f"a{change(kind + suffix)}"
        path.write_bytes(COMPRESSIONS[suffix](content.encode()))
        assert [document.text for document in read(path)] == DOCUMENTS


def test_a_null_is_an_empty_document_and_anything_else_without_text_is_a_fault(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    sound = ['{"text": "One."}', '{"text": null}', '{"text": ""}']
    faulty = ['{"text": 5}', '{"text": ["a"]}', '{"text": {"a": 1}}', '{"text": true}', '{"body": "a"}',
              '{"text": ', '["text"]']  # fmt: skip
    rows = [*sound, *faulty, '{"text": "Two."}']
    path.write_text("\n".join(rows))
    documents = read(path)
    assert [document.text for document in documents] == ["One.", *[""] * 9, "Two."]
    assert [document.place for document in documents] == [f"{path}:{n}" for n in range(1, 12)]
    faults = [document.fault for document in documents]
    assert [bool(fault) for fault in faults] == [False] * 3 + [True] * 7 + [False]
    for number, fault in enumerate(faults, start=1):
        assert not fault or fault.startswith(f"{path}:{number}")
    expected = ("int", "list", "dict", "bool", "no field 'text'", "not JSON", "no JSON object")
    for part, fault in zip(expected, faults[3:10], strict=True):
        assert part in fault
