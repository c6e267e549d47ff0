"""Articles from the output of WikiExtractor: its text form and its --json form, file by file.

    <doc id="12" url="https://…" title="Anarchism">
    Anarchism

    Anarchism is a political philosophy …
    </doc>

The first line inside repeats the title and is left out, as the JSON form leaves it out; both forms escape
&, < and >, which is undone. A folder means every `wiki_*` below it, compressed or not.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from nystromformer.data.documents import Document, Source
from nystromformer.data.lines import expand, lines, source_of
from nystromformer.data.text_files import json_document
from nystromformer.errors import UserError

_OPENING = re.compile(r'<doc id="[^"]*".* title="(?P<title>.*)">\s*')


class WikiExtractorFiles:
    """The files that `patterns` (paths, folders or globs) name; `setting` is where the user wrote them."""

    def __init__(self, patterns: Sequence[str], text_field: str = "text", *, setting: str) -> None:
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
        self._paths = expand(files, setting, None, "")
        self._text_field = text_field
        self._setting = setting

    @property
    def sources(self) -> list[Source]:
        # The folder tells AA/wiki_00 from AB/wiki_00.
        return [
            source_of(path)._replace(name="/".join(path.parts[-2:]) if path.parent.name else path.name)
            for path in self._paths
        ]

    def documents(self, source: int) -> Iterator[Document]:
        """Raises UserError for a line that belongs to neither form; JSON without a text is a `fault`."""
        path = self._paths[source]
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
                document = json_document(line.text, self._text_field, place, self._setting)
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
