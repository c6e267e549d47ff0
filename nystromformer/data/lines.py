"""The lines of text files, plain or compressed, in bounded memory."""

from __future__ import annotations

import codecs
import glob
import io
import lzma
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import pyarrow as pa

from nystromformer.data.documents import Source, SourceGone
from nystromformer.errors import UserError

COMPRESSION = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}
"""Endings in lower case; `compression_of` reads a name's in either."""
_NULS_OF_TEXT = 8
"""A line of which more than one byte in so many is NUL is UTF-16 or no text; fewer are noise."""


class Line(NamedTuple):
    number: int
    text: str


def expand(patterns: Sequence[str], setting: str, kinds: Collection[str] | None, hint: str) -> list[Path]:
    """The files that `patterns` (paths or globs) name, each once, in the order they are named.

    They exist, can be read, are not empty, and `kinds` has their suffix below the compression's (None
    takes any). `setting` names the patterns in messages, and `hint` tells what can be written there.
    """
    paths = [path for pattern in patterns for path in _expand(pattern, setting, hint)]
    for path in paths:
        if path.is_dir():
            raise UserError(f"{setting}: {str(path)!r} is a folder: write {path}/*.txt or {path}/*.jsonl")
        if not path.is_file():
            raise SourceGone(
                f"{setting}: {str(path)!r} does not exist (seen from {os.getcwd()}): correct the path"
            )
        if kinds is not None and kind_of(path) not in kinds:
            raise UserError(f"{setting}: {str(path)!r} is of an unknown kind: {hint}")
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty: remove it from {setting}, or fill it")
        if not os.access(path, os.R_OK):
            raise UserError(f"{path} may not be read by this user: change its permissions")
    return list(dict.fromkeys(paths))


def _expand(pattern: str, setting: str, hint: str) -> list[Path]:
    if not glob.has_magic(pattern) or os.path.exists(pattern):
        return [Path(pattern)]
    paths = [Path(found) for found in sorted(glob.glob(pattern, recursive=True)) if os.path.isfile(found)]
    if not paths:
        raise SourceGone(
            f"{setting}: {pattern!r} matches no file (seen from {os.getcwd()}): correct the pattern"
        )
    return paths


def compression_of(path: Path) -> str:
    """The ending of a compressed file in lower case, a key of COMPRESSION; empty for a plain one."""
    ending = path.suffix.lower()
    return ending if ending in COMPRESSION else ""


def kind_of(path: Path) -> str:
    """The ending below the compression's, in lower case."""
    return (path.with_suffix("") if compression_of(path) else path).suffix.lower()


def source_of(path: Path, kind: str = "") -> Source:
    """The file as an input that is read as `kind`."""
    compression = compression_of(path)
    return Source(path.name, None if compression else path.stat().st_size, (path,), format=kind + compression)


def lines(path: Path, *, errors: str = "strict") -> Iterator[Line]:
    """The lines of a file, counted from 1, without their ends and without a byte-order mark.

    Raises UserError with the place for a damaged archive, and for what is no UTF-8; with
    `errors="surrogateescape"` such bytes become surrogates instead, and the line goes on.
    """
    offset = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(file, start=1):
                yield Line(number, _decode(line, path, offset, errors, first=number == 1))
                offset += len(line)
    except (OSError, EOFError, lzma.LZMAError) as error:
        # Arrow reports a damaged or truncated archive as an OSError too.
        raise UserError(
            f"{path} cannot be read beyond byte {offset} of its text ({error}): copy or download it again"
        ) from error


def _open(path: Path) -> BinaryIO:
    compression = COMPRESSION.get(compression_of(path))
    if compression is None:
        return open(path, "rb", buffering=2**20)
    if compression == "xz":  # which Arrow does not know
        return cast(BinaryIO, io.BufferedReader(lzma.open(path), 2**20))
    # Arrow's stream notices a truncated .zst, at which zstandard's own reader just ends.
    stream = pa.input_stream(str(path), compression=compression)
    return cast(BinaryIO, io.BufferedReader(stream, 2**20))


def _decode(line: bytes, path: Path, offset: int, errors: str, *, first: bool) -> str:
    if first and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{path} is UTF-16: convert it, for instance with iconv -f utf-16 -t utf-8")
    if b"\0" in line and line.count(b"\0") * _NULS_OF_TEXT > len(line):
        raise UserError(
            f"{path} is binary or UTF-16 (a NUL byte at offset {offset + line.index(0)}): give text in UTF-8"
        )
    try:
        text = line.decode("utf-8-sig" if first else "utf-8", errors)
    except UnicodeDecodeError as error:
        # The decoder counts without the byte-order mark it skipped.
        skipped = 3 if first and line.startswith(b"\xef\xbb\xbf") else 0
        raise UserError(
            f"{path} is not UTF-8 (byte 0x{error.object[error.start]:02x} at offset "
            f"{offset + skipped + error.start}): convert it, for instance with iconv -f latin1 -t utf-8"
        ) from error
    return text.rstrip("\r\n")
