"""Files that other processes may read, write or want at the same moment: whole or absent, held, told apart.

Everything that writes a result, takes a folder for itself, or asks whether an input is still the same
comes here.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from nystromformer.errors import UserError

_CHUNK = 1 << 20


def write_atomically(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old or the new content, never half."""
    beside = path.with_name(f".{path.name}.tmp")
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError:  # a full disk: leave no half behind
        beside.unlink(missing_ok=True)
        raise


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write that takes the place of `path` if the block ends without an error.

    Its content is on the disk before its name is; of writers at the same time the last one wins.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def replacing_folder(place: Path) -> Iterator[Path]:
    """Give an empty folder that takes the place of `place` if the block ends without an error.

    Raises OSError where it cannot be written; what was there before is left.
    """
    recover_folder(place)
    beside, before = _unfinished(place), _before(place)
    try:
        beside.mkdir(parents=True)
        yield beside
        if place.exists():
            place.rename(before)
        beside.rename(place)
        shutil.rmtree(before, ignore_errors=True)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def why_not_writable(place: Path) -> str | None:
    """What forbids to make a file or folder there, as far as can be seen without trying."""
    existing = next(path for path in (place, *place.parents) if path.exists())
    if not existing.is_dir():
        return f"{existing} is a file"
    return None if os.access(existing, os.W_OK) else "permission denied"


def check_new_folder(target: Path) -> None:
    """Raise UserError where it cannot be made, or holds what would be taken for a part of the new one."""
    if target.exists() and not target.is_dir():
        raise UserError(f"target={target} is a file: write a folder")
    there = sorted(path.name for path in target.iterdir()) if target.is_dir() else []
    if "config.json" in there:
        raise UserError(f"target={target} holds a model already: write another folder, or remove it")
    if there:
        raise UserError(f"target={target} holds {there[0]} already: write another folder, or empty it")
    if why := why_not_writable(target.absolute()):
        raise UserError(f"target={target} cannot be written: {why}")


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to write to, which becomes the target at the end; after a mistake nothing is left."""
    try:
        with replacing_folder(target.resolve()) as beside:
            yield beside
    except OSError as error:
        raise UserError(f"target={target} cannot be written: {error.strerror or error}") from None


def recover_folder(place: Path) -> None:
    """Clear up what a kill left; between two renames the earlier folder is out of its place."""
    shutil.rmtree(_unfinished(place), ignore_errors=True)
    before = _before(place)
    if before.exists() and not place.exists():
        before.rename(place)
    shutil.rmtree(before, ignore_errors=True)


def _unfinished(place: Path) -> Path:
    return place.with_name(f".{place.name}.unfinished")


def _before(place: Path) -> Path:
    return place.with_name(f".{place.name}.before")


# --- who holds a folder -------------------------------------------------------------------------------


class Held(UserError):
    """Another process holds what was asked for; the message names it."""


@contextmanager
def held(
    lock: Path,
    what: str,
    otherwise: str,
    *,
    wait: float = 0,
    tell: Callable[[str], None] | None = None,
) -> Iterator[Path]:
    """Hold `lock` for this process; at once, or after its holder within `wait` seconds, or not at all.

    The system gives the lock back when its holder ends, however that comes about: a holder that died
    blocks nobody. Beside it stands who holds it and since when, for the message alone.

    Args:
        lock: a file that may be made; its folder is made.
        what: what is held, as the message names it: `runs/demo`.
        otherwise: what the user can write instead, the message's end: `write name=OTHER`.
        wait: seconds that its holder may go on.
        tell: is told, where there is a wait, whom it is for and since when that one is at it.

    Yields:
        The lock's file. Who wants no trace may remove it before the end: whoever waits then makes another.

    Raises:
        Held: another process has it, in this process's words: who, where and since when.
        OSError: the lock's folder cannot be written.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    holder = lock.with_name(f"{lock.name}.holder")
    file_lock = FileLock(lock)
    try:
        try:
            file_lock.acquire(timeout=0 if tell else wait)
        except Timeout:
            if tell is None:
                raise
            tell(f"{what} is in use by {_told(holder)}: waiting for it to end")
            file_lock.acquire(timeout=wait)
    except Timeout:
        raise Held(f"{what} is in use by {_told(holder)}: wait for it to end, or {otherwise}") from None
    try:
        write_atomically(holder, json.dumps(_this_process()) + "\n")
        yield lock
    finally:
        with suppress(OSError):
            holder.unlink(missing_ok=True)
        file_lock.release()


def _this_process() -> dict[str, str | int]:
    return {
        "process": os.getpid(),
        "machine": socket.gethostname(),
        "since": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        "command": " ".join(sys.argv[1:])[:200],
    }


def _told(holder: Path) -> str:
    for _ in range(20):
        try:
            who = json.loads(holder.read_text(encoding="utf-8"))
            return f"process {who['process']} on {who['machine']} since {who['since']} ({who['command']})"
        except (OSError, ValueError, KeyError, TypeError):
            time.sleep(0.05)  # it is between taking the lock and writing its name
    return "another process"


# --- what a file holds --------------------------------------------------------------------------------


def sha256_of_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, as hexadecimal digits; reads the file in small parts."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(_CHUNK):
            digest.update(part)
    return digest.hexdigest()


def sha256_of_json(content: object) -> str:
    """The SHA-256 of what JSON can say, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class ContentHashes:
    """What files hold, as SHA-256; a file is read again only where its size or time has changed.

    Size and time only save the reading. What is compared is the content: a copied or touched file is
    the same file.

    Args:
        memory: a JSON file that remembers the hashes between commands; None remembers them in this
            object alone. A damaged or unwritable one costs the reading and nothing else.
    """

    def __init__(self, memory: Path | None = None) -> None:
        self._memory = memory
        self._known: dict[str, list[int | str]] = {}
        if memory is not None:
            with suppress(OSError, ValueError):
                known = json.loads(memory.read_text(encoding="utf-8"))
                self._known = known if isinstance(known, dict) else {}

    def of(self, path: Path) -> str:
        """The SHA-256 of the file's bytes; raises OSError where it cannot be read."""
        digest, new = self._found(path)
        if new:
            self._write()
        return digest

    def of_all(self, paths: Iterable[Path]) -> list[str]:
        """The SHA-256 of each; the memory is written once, at the end or where it is interrupted."""
        digests, anything_new = [], False
        try:
            for path in paths:
                digest, new = self._found(path)
                anything_new |= new
                digests.append(digest)
        finally:
            if anything_new:
                self._write()
        return digests

    def unread(self, paths: Iterable[Path]) -> int:
        """How many bytes `of_all` will have to read."""
        return sum(path.stat().st_size for path in paths if not self._remembered(path.resolve()))

    def _found(self, path: Path) -> tuple[str, bool]:
        """The hash, and whether the file was read for it."""
        path = path.resolve()
        if before := self._remembered(path):
            return before, False
        seen = stamp(path)  # before the content: what is written to meanwhile is read again
        digest = sha256_of_file(path)
        self._known[str(path)] = [*seen, digest]
        return digest, True

    def _remembered(self, path: Path) -> str | None:
        before = self._known.get(str(path))
        if isinstance(before, list) and before[:-1] == stamp(path):
            return str(before[-1])
        return None

    def _write(self) -> None:
        if self._memory is not None:
            with suppress(OSError):
                self._memory.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(self._memory, json.dumps(self._known, indent=0) + "\n")


def stamp(path: Path) -> list[int | str]:
    """What changes with a file's content: its size, its times, of which nobody sets the last, its number."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
