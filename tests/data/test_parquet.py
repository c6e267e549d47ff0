from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nystromformer.data.corpora import open_corpus, read_documents
from nystromformer.data.documents import Document
from nystromformer.data.parquet import group_rows
from nystromformer.data.prepare import prepare
from nystromformer.data.storage import PreparedData
from nystromformer.errors import UserError
from nystromformer.settings import DataSettings, PrepareSettings, TokenizerSettings

from .conftest import made_up_documents


def write(folder: Path, *files: list[str], column: str = "text") -> Path:
    folder.mkdir(parents=True)
    for number, texts in enumerate(files):
        pq.write_table(pa.table({"id": list(range(len(texts))), column: texts}), folder / f"{number}.parquet")
    return folder


def settings(**values: object) -> DataSettings:
    return DataSettings(corpus="bookcorpus_wikipedia", **values)  # type: ignore[arg-type]


def read(**values: object) -> list[Document]:
    return list(read_documents(open_corpus(settings(**values))))


def test_articles_are_documents_and_sentences_are_grouped(tmp_path: Path):
    wikipedia = write(tmp_path / "wikipedia", ["Article one.\n\nMore.", "Article two."], ["Article three."])
    books = write(tmp_path / "books" / "deep", ["a", "a", "b", "c", "c", "c"], ["c", "d", "a", "e"])
    documents = read(wikipedia=str(wikipedia), bookcorpus=str(books.parent), bookcorpus_rows_per_document=3)
    assert [document.text for document in documents] == [
        "Article one.\n\nMore.",
        "Article two.",
        "Article three.",
        "a\nb\nc",
        "d\na\ne",
    ]
    assert documents[1].place.endswith("0.parquet:2")


def test_one_of_the_two_can_be_left_out(tmp_path: Path):
    wikipedia = write(tmp_path / "wikipedia", ["Article."])
    assert len(read(wikipedia=str(wikipedia), bookcorpus=None)) == 1
    assert list(settings(wikipedia=None, bookcorpus=None).complaints())


def test_grouping_keeps_the_rest():
    rows = [Document(str(number), f"r:{number}") for number in range(5)]
    assert [document.text for document in group_rows(rows, 2)] == ["0\n1", "2\n3", "4"]


def test_it_prepares(tmp_path: Path):
    wikipedia = write(tmp_path / "wikipedia", made_up_documents(60, seed=1))
    sentences = [line for text in made_up_documents(60, seed=2) for line in text.splitlines()]
    books = write(tmp_path / "books", sentences)
    data = settings(wikipedia=str(wikipedia), bookcorpus=str(books), folder=str(tmp_path / "out"), workers=1)
    prepared = prepare(PrepareSettings(data, TokenizerSettings(vocab_size=400), 32), show_progress=False)
    assert [source["inputs"][0]["name"] for source in prepared.manifest["sources"]] == [
        "wikipedia",
        "books",
    ]
    assert len(prepared.split("train")) > 100


@pytest.mark.parametrize("streaming", [True, False])
def test_without_the_hub_the_message_names_the_repository_and_the_ways_out(streaming: bool):
    with pytest.raises(UserError) as caught:
        read(streaming=streaming)
    message = str(caught.value)
    assert "\n" not in message
    for part in ("wikimedia/wikipedia", "data.wikipedia=FOLDER", "data=imdb"):
        assert part in message


def test_bad_folders_and_files_are_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"data\.wikipedia='/no/such/folder' is neither"):
        read(wikipedia="/no/such/folder")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no \.parquet file"):
        read(wikipedia=str(tmp_path / "empty"))
    other = write(tmp_path / "other", ["a"], column="body")
    with pytest.raises(UserError, match=r"0\.parquet has no column 'text' but id, body"):
        read(wikipedia=str(other))
    broken = write(tmp_path / "broken", ["a" * 1000])
    file = broken / "0.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"0\.parquet is no complete Parquet file"):
        read(wikipedia=str(broken))
    pq.write_table(pa.table({"text": [1, 2]}), file)
    with pytest.raises(UserError, match=r"0\.parquet:1: column 'text' holds int.*malformed_rows=skip"):
        read(wikipedia=str(broken))


def test_nulls_are_empty_documents_and_join_no_group(tmp_path: Path):
    folder = write(tmp_path / "a", ["a", None, "b", " ", "b", "c"])  # type: ignore[list-item]
    assert [document.text for document in read(wikipedia=str(folder), bookcorpus=None)] == [
        "a", "", "b", " ", "b", "c"
    ]  # fmt: skip
    grouped = read(wikipedia=None, bookcorpus=str(folder), bookcorpus_rows_per_document=2)
    assert [document.text for document in grouped] == ["", "a\nb", " ", "c"]


def test_rows_of_the_hub_are_those_of_the_commit_that_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    read_at = []
    texts = [*made_up_documents(40), None]

    class Rows(list[dict[str, str | None]]):
        def select_columns(self, columns: list[str]) -> "Rows":
            return self

    def load_dataset(name: str, config: str, *, revision: str, split: str, streaming: bool) -> Rows:
        read_at.append(revision)
        return Rows({"text": text} for text in texts)

    commit: str | None = "c" * 40
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr("nystromformer.data.parquet.commit_of", lambda name, revision: commit)

    def prepared() -> PreparedData:
        data = settings(bookcorpus=None, folder=str(tmp_path), workers=1, validation_fraction=0.2)
        return prepare(PrepareSettings(data, TokenizerSettings(vocab_size=400), 32), show_progress=False)

    first = prepared()
    assert set(read_at) == {commit}
    assert first.manifest["sources"][0]["inputs"][0]["content"] == f"20231101.en@{commit}"
    assert first.manifest["report"]["documents"]["dropped"]["empty"] == 1
    assert first.manifest["report"]["documents"]["first_dropped"]["empty"] == "wikimedia/wikipedia:41"
    count, commit = (
        len(read_at),
        None,
    )  # out of reach: what the same settings made is taken, and nothing is read
    assert prepared().folder == first.folder
    commit = "d" * 40
    assert prepared().folder != first.folder
    assert set(read_at[count:]) == {commit}
