"""Documents from text and JSON Lines files, plain or compressed.

    .txt     paragraphs are lines, documents are separated by blank lines
    .jsonl   one JSON object a line, whose `text_field` is a document

each also as .gz, .zst, .bz2 or .xz. Files are read line by line in UTF-8, so their size does not matter.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from nystromformer.data.documents import Document, Source
from nystromformer.data.lines import expand, kind_of, lines, source_of
from nystromformer.errors import UserError

_HINT = "write .txt or .jsonl files, each plain or with .gz, .zst, .bz2 or .xz"
_LARGEST_DOCUMENT = 2**24
"""Characters after which a .txt file without blank lines starts another document: what is in memory
at once stays bounded, and such a file can still be split into training and validation."""


class TextFiles:
    """The files that `patterns` (paths or globs) name, each once, in the order they are named.

    `json_lines` reads every file as JSON Lines, whatever its name; otherwise the suffix decides.
    `setting` is where the user wrote the patterns.
    """

    def __init__(
        self,
        patterns: Sequence[str],
        text_field: str = "text",
        *,
        setting: str = "data.files",
        json_lines: bool = False,
    ) -> None:
        self._paths = expand(patterns, setting, None if json_lines else (".txt", ".jsonl"), _HINT)
        self._text_field = text_field
        self._setting = setting
        self._json_lines = json_lines

    @property
    def sources(self) -> list[Source]:
        return [source_of(path) for path in self._paths]

    def documents(self, source: int) -> Iterator[Document]:
        """Raises UserError with file and place for anything that is no text, and for an empty file."""
        path = self._paths[source]
        is_json = self._json_lines or kind_of(path) == ".jsonl"
        found = False
        for document in self._json_documents(path) if is_json else _text_documents(path):
            found = True
            yield document
        if not found:
            raise UserError(f"{path} holds no document: remove it from {self._setting}, or fill it")

    def _json_documents(self, path: Path) -> Iterator[Document]:
        for line in lines(path):
            if line.text.strip():
                place = f"{path}:{line.number}"
                yield Document(json_text(line.text, self._text_field, place, self._setting), place)


def json_text(line: str, text_field: str, place: str, setting: str = "data.files") -> str:
    """The document in one line of JSON; raises UserError with the place where there is none."""
    field_setting = setting.rpartition(".")[0] + ".text_field"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{place} is not JSON ({error}): write one JSON object a line, or name the file .txt"
        ) from error
    if not isinstance(row, dict):
        raise UserError(f'{place} is no JSON object: write {{"{text_field}": "..."}}')
    if text_field not in row:
        fields = ", ".join(map(str, row)) or "none"
        raise UserError(
            f"{place} has no field {text_field!r}: write {field_setting}=NAME with one of "
            f"its fields ({fields})"
        )
    text = row[text_field]
    if not isinstance(text, str):
        raise UserError(
            f"{place}: field {text_field!r} is {type(text).__name__}, not a string: "
            f"write {field_setting}=NAME with the field that holds the text"
        )
    return text


def _text_documents(path: Path) -> Iterator[Document]:
    paragraphs: list[str] = []
    characters = 0
    first_line = 0
    for line in lines(path):
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
