"""The folder of a prepared corpus: complete or absent, never half.

    prepared/imdb-1f0c9a6be2d4/
      manifest.json             what is here, from what, with which settings
      report.json, report.html  documents, tokens, padding, what was dropped: for programs, for people
      tokenizer/                transformers' layout
      train/00000.arrow …       a shard; the number is that of the block of the corpus, see `reading`
      validation/00000.arrow …
      unigram_counts.npy        int64 of shape (vocabulary,): tokens of the training split

It is written as `.unfinished-NAME` (see `unfinished`) and renamed at the end, under a lock. So a
preparation that was killed leaves nothing that looks finished, and of two at the same time one waits and
takes the other's result.

One shard is one Arrow IPC file of one record batch with two columns, a row for each chunk:

    input_ids          list<uint16>, or list<int32> where the vocabulary is beyond 65,536
    sentence_lengths   list<int32>, whose sum is the row's number of tokens

Any Arrow reader opens it: `pyarrow.ipc.open_file(path).read_all()`.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nystromformer.data.documents import SPLITS
from nystromformer.data.segmentation import Chunks
from nystromformer.errors import UserError
from nystromformer.files import held, replacing, sha256_of_file, sha256_of_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


FORMAT_VERSION = 2
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer"
UNIGRAM_COUNTS = "unigram_counts.npy"
REPORT = "report.json"
REPORT_PAGE = "report.html"
REPORTS = (UNIGRAM_COUNTS, REPORT, REPORT_PAGE)


@dataclass(frozen=True)
class PreparedData:
    """A finished folder, opened. Cheap to open and to pickle: nothing is read before it is used."""

    folder: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> PreparedData:
        """Open `folder`, checking that every file is there in its full size.

        Raises UserError naming the file that is missing or damaged, and how to build it again.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        rebuild = REBUILD.format(folder=folder)
        for name, expected in manifest["files"].items():
            found = (folder / name).stat().st_size if (folder / name).is_file() else None
            if found is None:
                raise UserError(f"{folder / name} is missing: {rebuild}")
            if found != expected["bytes"]:
                raise UserError(
                    f"{folder / name} has {found} bytes instead of {expected['bytes']}: {rebuild}"
                )
        return cls(folder, manifest)

    def verify(self) -> None:
        """Read every file and compare it with the checksum of the manifest.

        Raises UserError naming the files that differ, and how to make them anew.
        """
        if damaged := damaged_files(self.folder, self.manifest):
            raise UserError(
                f"{', '.join(str(self.folder / name) for name in damaged)} "
                f"{'is' if len(damaged) == 1 else 'are'} damaged (the SHA-256 is not the manifest's): "
                + REBUILD.format(folder=self.folder)
            )

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer the examples were made with."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(str(self.folder / TOKENIZER))

    def split(self, name: str) -> ShardReader:
        """The chunks of `train` or `validation`."""
        if name not in SPLITS:
            raise UserError(f"split={name!r} is unknown: write one of {', '.join(SPLITS)}")
        return ShardReader(self.folder, [ShardInfo(**shard) for shard in self.manifest["shards"][name]])

    @property
    def content(self) -> str:
        """SHA-256 of all that a training reads: the chunks of both splits in order, and the tokenizer.

        Equal however the data came about: other files, folders or versions may give the same.
        """
        shards = {split: [shard["sha256"] for shard in self.manifest["shards"][split]] for split in SPLITS}
        read = {"tokenizer": self.manifest["tokenizer_sha256"], **shards}
        return sha256_of_json(read)

    @property
    def unigram_counts(self) -> NDArray[np.int64]:
        """How often each token id occurs in the training split, int64 of shape (vocabulary,)."""
        return np.load(self.folder / UNIGRAM_COUNTS, allow_pickle=False)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a prepared folder; raises UserError where there is none that can be read."""
    path = folder / MANIFEST
    again = (
        f"delete the folder {folder} and prepare it again with `nystromformer prepare` and the same settings"
    )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["format_version"]
        _ = manifest["files"]
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: {again}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): {again}") from error
    if version != FORMAT_VERSION:
        raise UserError(f"{path} has format {version}, this version reads {FORMAT_VERSION}: {again}")
    return manifest


def damaged_files(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """The files that are missing or whose SHA-256 is not the manifest's; every file is read."""
    return [
        name
        for name, expected in manifest["files"].items()
        if not (folder / name).is_file() or sha256_of_file(folder / name) != expected["sha256"]
    ]


@contextmanager
def locked(folder: Path, part: str = "") -> Iterator[None]:
    """Hold the preparation of `folder`; another process that prepares the same one waits here, and says for
    whom and since when that one is at it.

    With `part`, only the same part is held. Raises UserError when the parent folder cannot be written to.
    """
    lock = folder.parent / f".{folder.name}{part}.lock"
    with ExitStack() as stack:
        try:
            stack.enter_context(held(lock, str(folder), "write data.folder=OTHER", wait=math.inf, tell=say))
        except OSError as error:
            raise UserError(
                f"data.folder={str(folder.parent)!r} cannot be written to ({error.strerror}): "
                "write data.folder=FOLDER with one that can"
            ) from error
        yield


def say(words: str) -> None:
    """Tell whoever prepares, on stderr."""
    print(words, file=sys.stderr, flush=True)


def write_manifest(folder: Path, content: dict[str, Any], shards: list[ShardInfo]) -> None:
    """Write the manifest of a filled folder: `content`, and the size and checksum of every file.

    All of it is on the disk when this returns, so that a rename that follows cannot outrun it.
    """
    files = {shard.file: {"bytes": shard.bytes, "sha256": shard.sha256} for shard in shards}
    for name in (*REPORTS, *(f"{TOKENIZER}/{path.name}" for path in (folder / TOKENIZER).iterdir())):
        with open(folder / name, "rb") as file:
            os.fsync(file.fileno())
        files[name] = {"bytes": (folder / name).stat().st_size, "sha256": sha256_of_file(folder / name)}
    manifest = {"format_version": FORMAT_VERSION, **content, "files": dict(sorted(files.items()))}
    with replacing(folder / MANIFEST) as file:
        file.write((json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode())


# --- chunks in Arrow files ----------------------------------------------------------------------------

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
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)
    return ShardInfo(name, len(chunks), path.stat().st_size, sha256_of_file(path))


class ShardReader:
    """All chunks of one split by number, without reading them into memory.

    Files are opened on first use and never pickled, so that each worker process maps its own.
    """

    def __init__(self, folder: Path, shards: list[ShardInfo]) -> None:
        self._folder = folder
        self._shards = shards
        self._first_chunk = offsets_of(np.asarray([shard.chunks for shard in shards], np.int64))
        self._columns: dict[int, ShardColumns] = {}

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

    def _columns_of(self, number: int) -> ShardColumns:
        columns = self._columns.get(number)
        if columns is None:
            columns = self._columns[number] = ShardColumns(self._folder / self._shards[number].file)
        return columns

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_columns": {}}


class ShardColumns:
    """The arrays of one memory-mapped shard, without a copy: all its tokens and sentence lengths, and where
    those of each chunk start and of the last one end."""

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
