"""Files that grow part by part, with a note of how far they are: a kill at any moment costs one part.

FOLDER/
    predictions.jsonl.part     what grows; takes its name when it is whole
    progress.json              what it is of, how far it is, how long each file then was

A part is first on disk and then noted. Who goes on cuts off what was written and not noted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from nystromformer.errors import UserError
from nystromformer.files import write_atomically

PROGRESS = "progress.json"


def read_progress(folder: Path) -> dict[str, Any] | None:
    """What was noted last, None where nothing was; raises UserError where that cannot be read."""
    path = folder / PROGRESS
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {**content, "of": dict(content["of"]), "sizes": dict(content["sizes"])}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}): delete {folder}, or write folder=OTHER") from None


class GrowingFiles:
    """The files of a folder.

    Args:
        sizes: bytes of each that count, by name; what is beyond goes.
    """

    def __init__(self, folder: Path, sizes: Mapping[str, int]) -> None:
        self._folder = folder
        self._sizes = dict(sizes)
        self._files: dict[str, BinaryIO] = {}

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Open all of them where they ended; raises UserError where one has become shorter."""
        with ExitStack() as stack:
            for name, size in self._sizes.items():
                path = growing(self._folder, name)
                file = stack.enter_context(open(path, "r+b" if size else "wb"))
                if os.fstat(file.fileno()).st_size < size:
                    raise UserError(
                        f"{path} is shorter than was noted in {PROGRESS}: delete {self._folder}, or write "
                        "folder=OTHER"
                    )
                file.truncate(size)
                file.seek(size)
                self._files[name] = file
            yield

    def append(self, parts: Mapping[str, str | bytes], progress: Mapping[str, Any]) -> None:
        """Write a part of each file, and then note it."""
        for name, part in parts.items():
            # Unpaired surrogates, which JSON can carry and UTF-8 cannot, in JSON's own writing.
            content = part.encode(errors="backslashreplace") if isinstance(part, str) else part
            file = self._files[name]
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            self._sizes[name] += len(content)
        note_progress(self._folder, {**progress, "sizes": self._sizes})


def note_progress(folder: Path, progress: Mapping[str, Any]) -> None:
    write_atomically(folder / PROGRESS, json.dumps(progress, indent=2, ensure_ascii=False) + "\n")


def written_so_far(folder: Path, name: str) -> Iterator[str]:
    """The lines of a file that grows."""
    with open(growing(folder, name), encoding="utf-8", newline="\n") as file:
        yield from file


def name_for_good(folder: Path, name: str) -> None:
    """Give a whole file its name, if it has not got it yet."""
    path = growing(folder, name)
    if path.exists():
        path.replace(folder / name)


def growing(folder: Path, name: str) -> Path:
    """Where a file is until it is whole."""
    return folder / f"{name}.part"
