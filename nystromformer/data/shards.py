"""Chunks in Arrow files: written a block of the corpus at a time, read by memory map.

One shard is one Arrow IPC file of one record batch with two columns, a row for each chunk:

    input_ids          list<uint16>, or list<int32> where the vocabulary is beyond 65,536
    sentence_lengths   list<int32>, whose sum is the row's number of tokens

Any Arrow reader opens it: `pyarrow.ipc.open_file(path).read_all()`.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nystromformer.data.segmentation import Chunks
from nystromformer.errors import UserError
from nystromformer.files import sha256_of_file

PARTIAL = ".partial"
REBUILD = (
    "`nystromformer prepare repair={folder}`, in the folder where it was prepared, makes anew what is "
    "damaged and nothing else"
)


@dataclass(frozen=True)
class ShardInfo:
    """What the manifest keeps of one shard."""

    file: str
    """Relative to the prepared folder."""
    chunks: int
    bytes: int
    sha256: str


def token_type(vocab_size: int) -> np.dtype[Any]:
    """The smallest type that holds every token id."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.int32)


def write_shard(folder: Path, name: str, chunks: Chunks, dtype: np.dtype[Any]) -> ShardInfo:
    """Write `chunks` as `folder/name`, complete or not at all; equal chunks give equal bytes."""
    sentence_offsets = offsets_of(chunks.chunk_sentences)
    token_offsets = offsets_of(chunks.sentence_lengths)[sentence_offsets]
    batch = pa.record_batch(
        {
            "input_ids": _list_array(chunks.tokens.astype(dtype, copy=False), token_offsets),
            "sentence_lengths": _list_array(chunks.sentence_lengths, sentence_offsets),
        }
    )
    path = folder / name
    with replacing(path) as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)
    return ShardInfo(name, len(chunks), path.stat().st_size, sha256_of_file(path))


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write that takes the place of `path` if the block ends without an error.

    Its content is on the disk before its name is; of writers at the same time the last one wins.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    path.parent.mkdir(exist_ok=True)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class ShardReader:
    """All chunks of one split by number, without reading them into memory.

    Files are opened on first use and never pickled, so that each worker process maps its own.
    """

    def __init__(self, folder: Path, shards: list[ShardInfo]) -> None:
        self._folder = folder
        self._shards = shards
        self._first_chunk = offsets_of(np.asarray([shard.chunks for shard in shards], np.int64))
        self._columns: dict[int, _Columns] = {}

    def __len__(self) -> int:
        return int(self._first_chunk[-1])

    def __getitem__(self, index: int) -> tuple[NDArray[Any], NDArray[np.int32]]:
        """Tokens and sentence lengths of chunk `index`: read-only views into the mapped file."""
        if not 0 <= index < len(self):
            raise IndexError(f"chunk {index} of {len(self)}")
        number = int(np.searchsorted(self._first_chunk, index, side="right")) - 1
        columns = self._columns_of(number)
        row = index - int(self._first_chunk[number])
        token_start, token_end = columns.token_offsets[row : row + 2]
        start, end = columns.sentence_offsets[row : row + 2]
        return columns.tokens[token_start:token_end], columns.sentence_lengths[start:end]

    def lengths(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of the chunks with these numbers, (n,) → (n,); no chunk is read for it."""
        numbers = np.searchsorted(self._first_chunk, indices, side="right") - 1
        rows = indices - self._first_chunk[numbers]
        found = np.empty(len(indices), np.int64)
        for number in np.unique(numbers).tolist():
            here = numbers == number
            offsets = self._columns_of(number).token_offsets
            found[here] = offsets[rows[here] + 1] - offsets[rows[here]]
        return found

    def token_arrays(self) -> tuple[NDArray[Any], NDArray[np.int32]]:
        """Of a reader of one shard: all its tokens, and where each chunk starts and the last one ends."""
        (number,) = range(len(self._shards))
        columns = self._columns_of(number)
        return columns.tokens, columns.token_offsets

    def _columns_of(self, number: int) -> _Columns:
        columns = self._columns.get(number)
        if columns is None:
            columns = self._columns[number] = _Columns(self._folder / self._shards[number].file)
        return columns

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_columns": {}}


class _Columns:
    """The arrays of one memory-mapped shard, without a copy."""

    def __init__(self, path: Path) -> None:
        try:
            batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
            tokens, sentences = batch.column("input_ids"), batch.column("sentence_lengths")
        except (pa.ArrowException, OSError, KeyError, IndexError) as error:
            raise UserError(
                f"{path} is damaged ({error}): {REBUILD.format(folder=path.parents[1])}"
            ) from error
        self.tokens = tokens.values.to_numpy()
        self.token_offsets = tokens.offsets.to_numpy()
        self.sentence_lengths = sentences.values.to_numpy()
        self.sentence_offsets = sentences.offsets.to_numpy()


def offsets_of(lengths: NDArray[Any]) -> NDArray[np.int64]:
    """Where each of consecutive rows starts, and where the last one ends: (n,) → (n + 1,)."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _list_array(values: NDArray[Any], offsets: NDArray[np.int64]) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values))
