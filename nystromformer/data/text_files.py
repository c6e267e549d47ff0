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
        return [source_of(path, self._kind(path)) for path in self._paths]

    def documents(self, source: int) -> Iterator[Document]:
        """Raises UserError with the place for what cannot be read as text, and for an empty file.

        A JSON line without a text is a document with a `fault`.
        """
        path = self._paths[source]
        is_json = self._kind(path) == ".jsonl"
        found = False
        for document in self._json_documents(path) if is_json else _text_documents(path):
            found = True
            yield document
        if not found:
            raise UserError(f"{path} holds no document: remove it from {self._setting}, or fill it")

    def _kind(self, path: Path) -> str:
        return ".jsonl" if self._json_lines else kind_of(path)

    def _json_documents(self, path: Path) -> Iterator[Document]:
        for line in lines(path):
            if line.text.strip():
                yield json_document(line.text, self._text_field, f"{path}:{line.number}", self._setting)


def json_document(line: str, text_field: str, place: str, setting: str = "data.files") -> Document:
    """The document in one line of JSON: empty where its text is null, with a fault where it has none."""
    field_setting = setting.rpartition(".")[0] + ".text_field"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Document(
            "", place, f"{place} is not JSON ({error}): write one JSON object a line, or name the file .txt"
        )
    if not isinstance(row, dict):
        return Document("", place, f'{place} is no JSON object: write {{"{text_field}": "..."}}')
    if text_field not in row:
        fields = ", ".join(map(str, row)) or "none"
        return Document(
            "",
            place,
            f"{place} has no field {text_field!r}: write {field_setting}=NAME with one of its fields "
            f"({fields})",
        )
    text = row[text_field]
    if text is None:
        return Document("", place)
    if not isinstance(text, str):
        return Document(
            "",
            place,
            f"{place}: field {text_field!r} is {type(text).__name__}, not a string: "
            f"correct the line, or write {field_setting}=NAME with the field that holds the text",
        )
    return Document(text, place)


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
