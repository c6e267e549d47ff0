import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from nystromformer.data.segmentation import Chunks
from nystromformer.data.storage import ShardReader, token_type, write_shard
from nystromformer.errors import UserError
from nystromformer.files import replacing


def some_chunks(rows: list[list[list[int]]]) -> Chunks:
    return Chunks(
        np.array([token for row in rows for sentence in row for token in sentence], np.int32),
        np.array([len(sentence) for row in rows for sentence in row], np.int32),
        np.array([len(row) for row in rows], np.int32),
    )


ROWS = [[[number, number + 1], [number + 2] * (1 + number % 3)] for number in range(100)]


def write(folder: Path, vocab_size: int = 200) -> ShardReader:
    shards = [
        write_shard(folder, f"train/{n:05d}.arrow", some_chunks(ROWS[n : n + 30]), token_type(vocab_size))
        for n in range(0, 100, 30)
    ]
    return ShardReader(folder, shards)


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


def test_equal_chunks_give_equal_bytes_and_a_failure_leaves_nothing(tmp_path: Path):
    for name in "ab":
        (tmp_path / name).mkdir()
    infos = [
        write_shard(tmp_path / name, "train/00000.arrow", some_chunks(ROWS), token_type(200)) for name in "ab"
    ]
    assert infos[0] == infos[1]

    def fail() -> None:
        with replacing(tmp_path / "c") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_damaged_shard_is_named(tmp_path: Path):
    reader = write(tmp_path)
    (tmp_path / "train" / "00000.arrow").write_bytes(b"rubbish")
    with pytest.raises(UserError, match=r"00000\.arrow is damaged .*nystromformer prepare repair="):
        reader[0]
