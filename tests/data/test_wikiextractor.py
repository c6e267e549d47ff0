import bz2
import json
from pathlib import Path

import pytest

from nystromformer.data.documents import Document
from nystromformer.data.text_files import wikiextractor_files
from nystromformer.errors import UserError

TEXT = """<doc id="12" url="https://en.wikipedia.org/wiki?curid=12" title="Salt &amp; &quot;Pepper&quot;">
Salt &amp; "Pepper"

Salt is 3 &lt; 4.

Pepper is not.
</doc>
<doc id="39" revid="7" url="https://en.wikipedia.org/wiki?curid=39" title="A "quoted" one">
No repeated title here.
</doc>
"""
EXPECTED = ["\nSalt is 3 < 4.\n\nPepper is not.", "No repeated title here."]


def read(*patterns: Path) -> list[Document]:
    sources = wikiextractor_files([str(pattern) for pattern in patterns], setting="data.sources[0].files")
    return [document for source in sources for document in source.documents()]


def test_both_forms_and_a_folder(tmp_path: Path):
    for name in ("AA", "AB"):
        (tmp_path / name).mkdir()
    (tmp_path / "AA" / "wiki_00").write_text(TEXT)
    rows = [{"id": "1", "url": "u", "title": "T", "text": "Body &amp; soul."}, {"id": "2", "text": "Two."}]
    (tmp_path / "AB" / "wiki_00.bz2").write_bytes(bz2.compress("\n".join(map(json.dumps, rows)).encode()))
    (tmp_path / "AB" / "notes").write_text("not WikiExtractor's")
    assert [document.text for document in read(tmp_path)] == [*EXPECTED, "Body & soul.", "Two."]
    sources = wikiextractor_files([str(tmp_path)], setting="s")
    assert [source.name for source in sources] == ["AA/wiki_00", "AB/wiki_00.bz2"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("plain text", "wiki_00:1 is no output of WikiExtractor"),
        (TEXT[:130], "wiki_00 ends inside the article of line 1"),
    ],
)
def test_what_is_not_its_output_is_named(tmp_path: Path, content: str, expected: str):
    (tmp_path / "wiki_00").write_text(content)
    with pytest.raises(UserError) as caught:
        read(tmp_path / "wiki_00")
    assert expected in str(caught.value)


def test_a_json_line_without_text_is_a_fault_and_a_null_is_empty(tmp_path: Path):
    (tmp_path / "wiki_00").write_text('{"title": "a"}\n{"text": null}\n')
    missing, empty = read(tmp_path / "wiki_00")
    assert "wiki_00:1 has no field 'text'" in missing.fault
    assert (empty.text, empty.fault) == ("", "")


def test_a_folder_without_its_files_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"holds no file wiki_\*"):
        read(tmp_path)
