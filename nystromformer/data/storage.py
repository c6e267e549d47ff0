"""The folder of a prepared corpus: complete or absent, never half.

    prepared/imdb-1f0c9a6be2d4/
      manifest.json             what is here, from what, with which settings
      tokenizer/                transformers' layout
      train/00000.arrow …       see `shards`
      validation/00000.arrow …
      unigram_counts.npy        int64 of shape (vocabulary,): tokens of the training split

It is written as `.unfinished-NAME` and renamed at the end, under a lock. So a preparation that was
killed leaves nothing that looks finished, and of two at the same time one waits and takes the
other's result.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from nystromformer.data.shards import REBUILD, ShardInfo, ShardReader, sha256_of_file
from nystromformer.data.splits import SPLITS
from nystromformer.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer"
UNIGRAM_COUNTS = "unigram_counts.npy"
_UNFINISHED = ".unfinished-"


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
        path = folder / MANIFEST
        rebuild = REBUILD.format(folder=folder)
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            version, files = manifest["format_version"], manifest["files"]
        except FileNotFoundError as error:
            raise UserError(f"{path} is missing: {rebuild}") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}): {rebuild}") from error
        if version != FORMAT_VERSION:
            raise UserError(f"{path} has format {version}, this version reads {FORMAT_VERSION}: {rebuild}")
        for name, expected in files.items():
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

        Raises UserError naming the first file that differs.
        """
        for name, expected in self.manifest["files"].items():
            if sha256_of_file(self.folder / name) != expected["sha256"]:
                raise UserError(
                    f"{self.folder / name} is damaged (its SHA-256 is not the manifest's): "
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
    def unigram_counts(self) -> NDArray[np.int64]:
        """How often each token id occurs in the training split, int64 of shape (vocabulary,)."""
        return np.load(self.folder / UNIGRAM_COUNTS, allow_pickle=False)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the preparation of `folder`; another process that prepares the same one waits here.

    Raises UserError when the parent folder cannot be written to.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(_lock_path(folder.name, folder.parent))
        lock.acquire()
    except OSError as error:
        raise UserError(
            f"data.folder={str(folder.parent)!r} cannot be written to ({error.strerror}): "
            "write data.folder=FOLDER with one that can"
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def unfinished(folder: Path) -> Iterator[Path]:
    """Give a temporary sibling to fill, which becomes `folder` if the block ends without an error.

    To be used while `folder` is `locked`. Raises UserError when the disk is full or read-only.
    """
    _remove_abandoned(folder.parent)
    temporary = folder.parent / f"{_UNFINISHED}{folder.name}"
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # ours by the lock: its writer is dead
        temporary.mkdir()
        yield temporary
        os.rename(temporary, folder)
    except OSError as error:
        raise UserError(
            f"{temporary} cannot be written ({error.strerror or error}): free space there, or write "
            "data.folder=FOLDER with a folder on another disk"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Write the manifest of a filled folder: `content` and the size and checksum of every file.

    All of it is on the disk when this returns, so that the rename that follows cannot outrun it.
    """
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        _flush(path)
        name = path.relative_to(folder).as_posix()
        files[name] = {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
    manifest = {"format_version": FORMAT_VERSION, **content, "files": files}
    path = folder / MANIFEST
    path.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _flush(path)


def _flush(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _lock_path(name: str, parent: Path) -> Path:
    return parent / f".{name}.lock"


def _remove_abandoned(parent: Path) -> None:
    """Remove what killed preparations left here; those still at work hold their locks."""
    for temporary in parent.glob(f"{_UNFINISHED}*"):
        lock = FileLock(_lock_path(temporary.name.removeprefix(_UNFINISHED), parent))
        try:
            with lock.acquire(timeout=0):
                shutil.rmtree(temporary, ignore_errors=True)
        except Timeout:
            continue
