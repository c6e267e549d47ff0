"""Documents from text and JSON Lines files, plain or compressed.

    .txt     paragraphs are lines, documents are separated by blank lines
    .jsonl   one JSON object a line, whose `text_field` is a document

each also as .gz or .zst. Files are read line by line in UTF-8, so their size does not matter.
"""

from __future__ import annotations

import glob
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import pyarrow as pa

from nystromformer.data.documents import Document, Source
from nystromformer.errors import UserError

_COMPRESSION = {".gz": "gzip", ".zst": "zstd"}
_LARGEST_DOCUMENT = 2**24
"""Characters after which a .txt file without blank lines starts another document: what is in memory
at once stays bounded, and such a file can still be split into training and validation."""


class TextFiles:
    """The files that `patterns` (paths or globs) name, each once, in the order they are named."""

    def __init__(self, patterns: Sequence[str], text_field: str = "text") -> None:
        paths = [path for pattern in patterns for path in _expand(pattern)]
        self._paths = list(dict.fromkeys(paths))
        self._text_field = text_field

    @property
    def sources(self) -> list[Source]:
        sources = []
        for path in self._paths:
            stat = path.stat()
            size = None if path.suffix in _COMPRESSION else stat.st_size
            # The name without its folder: a corpus that moved is still the same corpus.
            sources.append(Source(path.name, size, f"{stat.st_size} bytes of {stat.st_mtime_ns} ns"))
        return sources

    def documents(self, source: int) -> Iterator[Document]:
        """Raises UserError with file and place for anything that is no text, and for an empty file."""
        path = self._paths[source]
        is_json = _kind(path) == ".jsonl"
        found = False
        for document in self._json_documents(path) if is_json else _text_documents(path):
            found = True
            yield document
        if not found:
            raise UserError(f"{path} holds no document: remove it from data.files, or fill it")

    def _json_documents(self, path: Path) -> Iterator[Document]:
        for line in _lines(path):
            if not line.text.strip():
                continue
            place = f"{path}:{line.number}"
            try:
                row = json.loads(line.text)
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"{place} is not JSON ({error}): write one JSON object a line, or name the file .txt"
                ) from error
            if not isinstance(row, dict):
                raise UserError(f'{place} is no JSON object: write {{"{self._text_field}": "..."}}')
            if self._text_field not in row:
                fields = ", ".join(map(str, row)) or "none"
                raise UserError(
                    f"{place} has no field {self._text_field!r}: write data.text_field=NAME with one of "
                    f"its fields ({fields})"
                )
            text = row[self._text_field]
            if not isinstance(text, str):
                raise UserError(
                    f"{place}: field {self._text_field!r} is {type(text).__name__}, not a string: "
                    "write data.text_field=NAME with the field that holds the text"
                )
            yield Document(text, place)


def _expand(pattern: str) -> list[Path]:
    """The files of one entry of data.files, sorted; they exist, are not empty and have a known kind."""
    if glob.has_magic(pattern) and not os.path.exists(pattern):
        paths = [Path(found) for found in sorted(glob.glob(pattern, recursive=True)) if os.path.isfile(found)]
        if not paths:
            raise UserError(
                f"data.files: {pattern!r} matches no file (seen from {os.getcwd()}): correct the pattern"
            )
    else:
        paths = [Path(pattern)]
    for path in paths:
        if path.is_dir():
            raise UserError(f"data.files: {str(path)!r} is a folder: write {path}/*.txt or {path}/*.jsonl")
        if not path.is_file():
            raise UserError(
                f"data.files: {str(path)!r} does not exist (seen from {os.getcwd()}): correct the path"
            )
        if _kind(path) not in (".txt", ".jsonl"):
            raise UserError(
                f"data.files: {str(path)!r} is of an unknown kind: write .txt or .jsonl files, each plain "
                "or with .gz or .zst"
            )
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty: remove it from data.files, or fill it")
        if not os.access(path, os.R_OK):
            raise UserError(f"{path} may not be read by this user: change its permissions")
    return paths


def _kind(path: Path) -> str:
    """The suffix below the compression's."""
    return path.with_suffix("").suffix if path.suffix in _COMPRESSION else path.suffix


def _text_documents(path: Path) -> Iterator[Document]:
    paragraphs: list[str] = []
    characters = 0
    first_line = 0
    for line in _lines(path):
        blank = not line.text or line.text.isspace()
        if paragraphs and (blank or characters >= _LARGEST_DOCUMENT):
            yield Document("\n".join(paragraphs), f"{path}:{first_line}")
            paragraphs, characters = [], 0
        if not blank:
            if not paragraphs:
                first_line = line.number
            paragraphs.append(line.text)
            characters += len(line.text)
    if paragraphs:
        yield Document("\n".join(paragraphs), f"{path}:{first_line}")


class _Line(NamedTuple):
    number: int
    text: str


def _lines(path: Path) -> Iterator[_Line]:
    """The lines of a file, counted from 1, without their ends and without a byte-order mark."""
    offset = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(file, start=1):
                yield _Line(number, _decode(line, path, offset, first=number == 1))
                offset += len(line)
    except OSError as error:
        # Arrow reports a damaged or truncated archive as an OSError too.
        raise UserError(
            f"{path} cannot be read beyond byte {offset} of its text ({error}): copy or download it again"
        ) from error


def _open(path: Path) -> BinaryIO:
    compression = _COMPRESSION.get(path.suffix)
    if compression is None:
        return open(path, "rb", buffering=2**20)
    # Arrow's stream notices a truncated .zst, at which zstandard's own reader just ends.
    stream = pa.input_stream(str(path), compression=compression)
    return cast(BinaryIO, io.BufferedReader(stream, 2**20))


def _decode(line: bytes, path: Path, offset: int, *, first: bool) -> str:
    if b"\0" in line:
        raise UserError(
            f"{path} is binary or UTF-16 (a NUL byte at offset {offset + line.index(0)}): give text in UTF-8"
        )
    try:
        text = line.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        # The decoder counts without the byte-order mark it skipped.
        skipped = 3 if first and line.startswith(b"\xef\xbb\xbf") else 0
        raise UserError(
            f"{path} is not UTF-8 (byte 0x{error.object[error.start]:02x} at offset "
            f"{offset + skipped + error.start}): convert it, for instance with iconv -f latin1 -t utf-8"
        ) from error
    return text.rstrip("\r\n")
