"""Files that other processes may read, write or want at the same moment: whole or absent, held, told apart.

Everything that writes a result, takes a folder for itself, or asks whether an input is still the same
comes here.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

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


# --- who holds a folder -------------------------------------------------------------------------------


class Held(UserError):
    """Another process holds what was asked for; the message names it."""


@contextmanager
def held(lock: Path, what: str, otherwise: str, *, wait: float = 0) -> Iterator[Path]:
    """Hold `lock` for this process; at once, or after its holder within `wait` seconds, or not at all.

    The system gives the lock back when its holder ends, however that comes about: a holder that died
    blocks nobody. Beside it stands who holds it and since when, for the message alone.

    Args:
        lock: a file that may be made; its folder is made.
        what: what is held, as the message names it: `runs/demo`.
        otherwise: what the user can write instead, the message's end: `write name=OTHER`.
        wait: seconds that its holder may go on, for what is held for moments alone.

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
    try:
        who = json.loads(holder.read_text(encoding="utf-8"))
        return f"process {who['process']} on {who['machine']} since {who['since']} ({who['command']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"  # between taking the lock and writing its name


# --- what a file holds --------------------------------------------------------------------------------


def sha256_of_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, as hexadecimal digits; reads the file in small parts."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(_CHUNK):
            digest.update(part)
    return digest.hexdigest()


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
        path = path.resolve()
        found = path.stat()
        stamp: list[int | str] = [found.st_size, found.st_mtime_ns, found.st_ino]
        before = self._known.get(str(path))
        if isinstance(before, list) and before[:-1] == stamp:
            return str(before[-1])
        digest = sha256_of_file(path)
        self._known[str(path)] = [*stamp, digest]
        if self._memory is not None:
            with suppress(OSError):
                self._memory.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(self._memory, json.dumps(self._known, indent=0) + "\n")
        return digest
