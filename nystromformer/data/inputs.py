"""What a corpus' inputs hold. By this a preparation is known, not by where files lie or how old they are."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

from nystromformer.data.corpora import Corpus
from nystromformer.data.documents import Source
from nystromformer.errors import UserError
from nystromformer.files import ContentHashes, stamp

_WORTH_SAYING = 4 * 10**9  # bytes; fewer are read in seconds


class Input(NamedTuple):
    """One file, or one repository of the hub."""

    name: str
    """For people; a renamed file is the same input."""
    size: int | None
    """In bytes of text; None where only reading everything would tell."""
    content: str
    """SHA-256 of a file's bytes, or what the hub was asked for and the commit it answered with."""
    format: str
    """What decides how the bytes are read."""


class Inputs:
    """The inputs of a corpus as they are now, every file read once unless `hashes` remembers it.

    Raises UserError for a file that cannot be read.
    """

    def __init__(self, corpus: Corpus, hashes: ContentHashes) -> None:
        sources = [part.reader.sources for part in corpus.parts]
        self._hashes = hashes
        # Before their content: what is written to while it is read is seen to have changed.
        self._stamps = {path: _stamp(path) for part in sources for source in part for path in source.files}
        self._contents = dict(zip(self._stamps, _read(list(self._stamps), hashes), strict=True))
        self.of_part = [[found for source in part for found in self._of(source)] for part in sources]

    @property
    def identity(self) -> list[list[list[str]]]:
        """What each part's documents depend on: content and format of its inputs, in order."""
        return [[[each.format, each.content] for each in part] for part in self.of_part]

    def as_json(self, part: int) -> list[dict[str, Any]]:
        """The inputs of one part for the manifest."""
        return [each._asdict() for each in self.of_part[part]]

    def complain_if_changed(self) -> None:
        """Raise UserError, naming the file, if one no longer holds what it held at first.

        One that was only touched, or copied over by the same bytes, has not changed.
        """
        for path, before in self._stamps.items():
            now = _stamp(path)
            if now != before:
                if self._hashes.of(path) != self._contents[path]:
                    raise UserError(
                        f"{path} changed while it was prepared: give the same command again, which starts "
                        "from the beginning"
                    )
                self._stamps[path] = now

    def _of(self, source: Source) -> list[Input]:
        if not source.files:
            return [Input(source.name, source.size, source.version, source.format)]
        single = len(source.files) == 1
        return [
            Input(
                source.name if single else f"{source.name}/{path.name}",
                source.size if single else path.stat().st_size,
                self._contents[path],
                source.format,
            )
            for path in source.files
        ]


def _read(paths: list[Path], hashes: ContentHashes) -> list[str]:
    try:
        if (unread := hashes.unread(paths)) > _WORTH_SAYING:
            print(
                f"reading {unread / 1e9:.1f} GB once, to know the sources by what they hold",
                file=sys.stderr,
                flush=True,
            )
        return hashes.of_all(paths)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}): make it readable") from error


def _stamp(path: Path) -> list[int | str]:
    try:
        return stamp(path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): bring it back, and give the same command again"
        ) from error
