from pathlib import Path

import pytest

from nystromformer.data import reading
from nystromformer.data.corpora import open_corpus
from nystromformer.data.documents import text_hash
from nystromformer.data.reading import Blocks, DocumentBatch, copies_of
from nystromformer.settings.data import DataSettings, SourceSettings

from .conftest import made_up_documents


def read(shard_bytes: float, *sources: SourceSettings) -> tuple[list[DocumentBatch], int]:
    stream = Blocks(open_corpus(DataSettings(corpus="mixture", sources=list(sources))), shard_bytes)
    batches = list(stream)
    assert stream.count is not None
    return batches, stream.count


def write(path: Path, documents: list[str]) -> SourceSettings:
    path.write_text("\n\n".join(documents))
    return SourceSettings("text", [str(path)])


def test_blocks_do_not_depend_on_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = write(tmp_path / "a.txt", made_up_documents(100))

    def contents() -> dict[int, list[str]]:
        batches, count = read(20_000, source)
        found: dict[int, list[str]] = {}
        for batch in batches:
            found.setdefault(batch.block, []).extend(text.text for text in batch.documents)
        assert list(found) == list(range(count))
        assert [batch.block for batch in batches if batch.ends_block] == list(range(count))
        return found

    large = contents()
    monkeypatch.setattr(reading, "_BATCH_BYTES", 3_000)
    assert contents() == large
    assert [text for texts in large.values() for text in texts] == made_up_documents(100)
    sizes = [sum(len(text) for text in texts) for texts in large.values()]
    assert all(20_000 <= size < 25_000 for size in sizes[:-1])


def test_a_block_that_ends_with_the_corpus_is_the_last(tmp_path: Path):
    batches, count = read(10, write(tmp_path / "a.txt", ["0123456789", "abcdefghij"]))
    assert (len(batches), count) == (2, 2)


def test_everything_read_is_counted_once(tmp_path: Path):
    documents = [*made_up_documents(50), *made_up_documents(10)]
    first = write(tmp_path / "a.txt", documents)
    second = write(tmp_path / "b.jsonl", [])
    (tmp_path / "b.jsonl").write_text(
        '{"text": " \\u0000"}\n{"text": "New."}\n{"text": "' + documents[0].replace("\n", "\\n") + '"}\n'
    )
    batches, _ = read(10_000, first, second)
    totals = [reading.ReadCounts(), reading.ReadCounts()]
    for batch in batches:
        for total, counts in zip(totals, batch.read, strict=True):
            total.add(counts)
    assert (totals[0].documents, totals[0].duplicates, totals[0].empty) == (60, 10, 0)
    assert (totals[1].documents, totals[1].duplicates, totals[1].empty) == (3, 1, 1)
    assert totals[0].bytes == sum(len(text.encode()) for text in documents)
    assert sum(len(batch.documents) for batch in batches) == 51


@pytest.mark.parametrize("weight", [0.25, 1.0, 1.5, 3.0])
def test_the_weight_is_how_often_an_epoch_shows_a_document(weight: float):
    copies = [copies_of(text_hash(str(number)), weight) for number in range(4000)]
    assert set(copies) <= {int(weight), int(weight) + 1}
    assert abs(sum(copies) / 4000 - weight) < 3 * (0.25 / 4000) ** 0.5


def test_the_choice_of_a_weight_is_independent_of_the_split():
    hashes = [text_hash(str(number)) for number in range(4000)]
    below = [copies_of(h, 0.5) for h in hashes if h < 2**62]
    assert abs(sum(below) / len(below) - 0.5) < 3 * (0.25 / len(below)) ** 0.5


def test_limits_end_a_source(tmp_path: Path):
    source = write(tmp_path / "a.txt", ["a" * 100] + [f"{n:0100d}" for n in range(50)])
    source.max_documents = 7
    assert sum(len(b.documents) for b in read(1e6, source)[0]) == 7
    source.max_documents, source.max_megabytes = None, 0.00095
    assert sum(len(b.documents) for b in read(1e6, source)[0]) == 10
