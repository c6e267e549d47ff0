import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from nystromformer.data.segmentation import Chunks
from nystromformer.data.shards import ShardReader, ShardWriter
from nystromformer.errors import UserError


def some_chunks(rows: list[list[list[int]]]) -> Chunks:
    return Chunks(
        np.array([token for row in rows for sentence in row for token in sentence], np.int32),
        np.array([len(sentence) for row in rows for sentence in row], np.int32),
        np.array([len(row) for row in rows], np.int32),
    )


ROWS = [[[number, number + 1], [number + 2] * (1 + number % 3)] for number in range(100)]


def write(folder: Path, vocab_size: int = 200) -> ShardReader:
    writer = ShardWriter(folder, "train", vocab_size, tokens_per_shard=50)
    for number in range(0, 100, 7):
        writer.append(some_chunks(ROWS[number : number + 7]))
    return ShardReader(folder, writer.close())


@pytest.mark.parametrize(("vocab_size", "dtype"), [(2**16, np.uint16), (2**16 + 1, np.int32)])
def test_chunks_come_back_from_several_shards(tmp_path: Path, vocab_size: int, dtype: type):
    reader = write(tmp_path, vocab_size)
    assert len(list((tmp_path / "train").iterdir())) > 3
    assert len(reader) == 100
    for reread in (reader, pickle.loads(pickle.dumps(reader))):
        for number in (0, 99, 50, 6, 7, 1):
            tokens, lengths = reread[number]
            assert tokens.dtype == dtype
            assert tokens.tolist() == [token for sentence in ROWS[number] for token in sentence]
            assert lengths.tolist() == [len(sentence) for sentence in ROWS[number]]
    with pytest.raises(IndexError):
        reader[100]


def test_lengths_are_those_of_the_chunks(tmp_path: Path):
    reader = write(tmp_path)
    numbers = np.array([0, 99, 50, 6, 7, 1, 50])
    assert reader.lengths(numbers).tolist() == [len(reader[number][0]) for number in numbers]


def test_any_arrow_reader_opens_a_shard(tmp_path: Path):
    write(tmp_path)
    table = pa.ipc.open_file(tmp_path / "train" / "00000.arrow").read_all()
    assert table.column("input_ids")[1].as_py() == [1, 2, 3, 3]
    assert table.column("sentence_lengths")[1].as_py() == [2, 2]


def test_unigrams_are_counted(tmp_path: Path):
    writer = ShardWriter(tmp_path, "train", 10, tokens_per_shard=3)
    writer.append(some_chunks([[[1, 2], [2, 3]]]))
    writer.append(some_chunks([[[9], [2]]]))
    writer.close()
    assert writer.unigram_counts.tolist() == [0, 1, 3, 1, 0, 0, 0, 0, 0, 1]


def test_a_damaged_shard_is_named(tmp_path: Path):
    reader = write(tmp_path)
    (tmp_path / "train" / "00000.arrow").write_bytes(b"rubbish")
    with pytest.raises(UserError, match=r"00000\.arrow is damaged .*delete the folder"):
        reader[0]
