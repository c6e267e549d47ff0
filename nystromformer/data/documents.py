"""What a document is, where it comes from, its text as it is counted, and the split it belongs to."""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

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
    documents: Callable[[], Iterator[Document]]
    """Read it, one document after the other."""
    files: tuple[Path, ...] = ()
    """In the order they are read; what they hold is what the source is known by."""
    version: str = ""
    """Of a source without files: the hub's revision."""
    certain: bool = True
    """Whether `version` is what the hub answered, rather than what it was to be asked."""
    format: str = ""
    """What decides how the files are read: `.jsonl.gz`."""


def text_hash(text: str) -> int:
    """64 bits of BLAKE2b over the text: equal texts are duplicates, and the split follows it."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def validation_below(validation_fraction: float) -> int:
    """The hash from which on documents are training's, for a share of validation documents: the same answer
    for any seed and any corpus."""
    return math.ceil(validation_fraction * 2**64)


# --- the text as it is counted, hashed and split ------------------------------------------------------

_ODD_BYTES = bytes(sorted({*range(0x20), 0x7F} - {ord("\t"), ord("\n")}))
_LINE_BREAK = re.compile("\r\n?|[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_ODD_OF_TWO_BYTES = re.compile(rb"\xc2[\x80-\x9f]")  # U+0080 to U+009F in UTF-8
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f]")


def clean(text: str) -> str:
    """Normalise `text`: cleaning twice is cleaning once.

    Unpaired surrogates, which JSON can carry and UTF-8 cannot, become U+FFFD; every kind of line break
    becomes a newline; other control characters (Unicode's category Cc, but for the tab) are removed; the
    rest is put into normal form C, in which é is one character; white space at the ends is cut.
    """
    text = without_surrogates(text)
    if _has_odd(text):
        text = _CONTROL.sub("", _LINE_BREAK.sub("\n", text))
    return (text if text.isascii() else unicodedata.normalize("NFC", text)).strip()


def _has_odd(text: str) -> bool:
    """Whether it holds a control character or a line break other than the newline: found at a GB/s, where
    the expressions that replace them need six times as long."""
    encoded = text.encode()
    if len(encoded.translate(None, _ODD_BYTES)) < len(encoded):
        return True
    if text.isascii():
        return False
    return bool(_ODD_OF_TWO_BYTES.search(encoded)) or "\u2028" in text or "\u2029" in text


def without_surrogates(text: str) -> str:
    """Replace unpaired surrogates by U+FFFD; paired ones become the character they stand for."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


# --- the training and the validation split ------------------------------------------------------------

SPLITS = ("train", "validation")


@dataclass(frozen=True)
class SplitRule:
    """Sends a document, known by the hash of its text, to one of the splits.

    So a document is in one split whole, the same in any run, and two corpora that share a document
    agree on it.
    """

    validation_below: int
    """Documents of hashes below it are validation's."""
    moved: int | None = None
    """A document that is sent to the other split, so that no split of a tiny corpus stays empty."""

    def of(self, document_hash: int) -> str:
        validation = (document_hash < self.validation_below) != (document_hash == self.moved)
        return "validation" if validation else "train"
