"""What a document is, where it comes from, its identity, and the split it belongs to."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from nystromformer.errors import UserError


class SourceGone(UserError):
    """An input is not there, or not within reach; nothing is wrong with the settings that name it."""


class Document(NamedTuple):
    """One text, paragraphs separated by newlines, and where it came from (file and line, say)."""

    text: str
    place: str
    fault: str = ""
    """Why there is no text at this place, and what to do about it; empty for every sound document."""


class Source(NamedTuple):
    """One input of a corpus: a file, files that belong together, or a repository of the hub."""

    name: str
    size: int | None
    """In bytes; None where only reading everything would tell."""
    files: tuple[Path, ...] = ()
    """In the order they are read; what they hold is what the source is known by."""
    version: str = ""
    """Of a source without files: the hub's revision."""
    certain: bool = True
    """Whether `version` is what the hub answered, rather than what it was to be asked."""
    format: str = ""
    """What decides how the files are read: `.jsonl.gz`."""


class Reader(Protocol):
    """What reads one kind of source; making one checks that its inputs exist."""

    @property
    def sources(self) -> list[Source]: ...

    def documents(self, source: int) -> Iterator[Document]:
        """Read the source of that number, one document after the other."""
        ...


def text_hash(text: str) -> int:
    """64 bits of BLAKE2b over the text: equal texts are duplicates, and the split follows it."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def validation_below(validation_fraction: float) -> int:
    """The hash from which on documents are training's, for a share of validation documents."""
    return math.ceil(validation_fraction * 2**64)


def in_validation(document_hash: int, validation_fraction: float) -> bool:
    """Whether a document is kept out of training: the same answer for any seed and any corpus."""
    return document_hash < validation_below(validation_fraction)
