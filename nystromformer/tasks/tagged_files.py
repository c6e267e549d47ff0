"""Words with tags: CoNLL columns or JSON lines, plain or compressed, each word with the line it comes from.

CoNLL        a word a line with its tag in the last column, a blank line after each sentence, and where the
             file has documents a line -DOCSTART- before each
JSON lines   {"tokens": […], "tags": […]} an example; a list of lists has sentences
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, ClassVar

from nystromformer.data.documents import without_surrogates
from nystromformer.tasks.row_files import Asked, Fault, Row, RowFile, Unusable, is_unicode, shortened

_DOCUMENT = "-DOCSTART-"
_PREFIXES = {"bio": "BI", "iobes": "BIES"}


@dataclass(frozen=True)
class Word:
    text: str
    tag: str
    """Empty in a file without tags."""
    line: int


@dataclass(frozen=True)
class Document:
    """A document, or a sentence where those are the examples."""

    sentences: list[list[Word]]
    name: str | None = None

    @property
    def words(self) -> list[Word]:
        return list(chain(*self.sentences))

    @property
    def place(self) -> str:
        return f"line {self.words[0].line}"

    def tags(self) -> Iterator[str]:
        return (word.tag for word in chain(*self.sentences))


class TaggedFile(RowFile):
    """A file of words with tags.

    Args:
        unit: `document` or `sentence`: what an example is.
        tokens, tags: names in JSON lines.
    """

    advice: ClassVar[str] = "mend the line"

    def __init__(self, asked: Asked, *, unit: str, tokens: str, tags: str) -> None:
        super().__init__(asked, None, "write a file of CoNLL columns or .jsonl")
        self._by_sentence = unit == "sentence"
        self._names = (tokens, tags)

    def documents(self, *, labelled: bool) -> Iterator[Document | Fault]:
        """The examples; raises Malformed with file and line for one that cannot be read."""
        return self.usable(self.raw(labelled), self._units)

    def raw(self, labelled: bool | None) -> Iterator[Document | Unusable]:
        """Documents as the file has them; with None for `labelled`, words may have a tag or none."""
        return self._json(labelled) if self.is_json else self._columns(labelled)

    def _units(self, document: Document, _: int) -> Iterator[Document]:
        sentences = [sentence for sentence in document.sentences if sentence]
        if self._by_sentence:
            yield from (Document([sentence]) for sentence in sentences)
        elif sentences:
            yield Document(sentences, document.name)

    # --- CoNLL columns -------------------------------------------------------------------------------

    def _columns(self, labelled: bool | None) -> Iterator[Document | Unusable]:
        """Documents where the file has them, else each sentence by itself."""
        sentences: list[list[Word]] = [[]]
        in_documents, width, wrong = False, None, None
        missing = "write a word and its tag, with a tab between them"
        for line in self.lines():
            cells = line.text.split("\t") if "\t" in line.text else line.text.split()
            if not line.text.strip():
                sentences.append([])
                if in_documents or not any(sentences):
                    continue
            elif cells[0] == _DOCUMENT:
                in_documents = True
            else:
                width = width or len(cells)
                what = None
                if len(cells) != width:
                    what = f"is malformed ({len(cells)} columns, where there should be {width})"
                elif not is_unicode([line.text]):
                    what = "is malformed (no UTF-8)"
                elif not cells[0].strip():
                    what = f"has no word: {missing}"
                elif labelled and (width == 1 or not cells[-1].strip()):
                    what = f"has no tag: {missing}"
                if what and wrong is None:
                    wrong = Unusable(what, f"line {line.number}")
                tag = cells[-1].strip() if width > 1 else ""
                sentences[-1].append(Word(cells[0].strip(), tag, line.number))
                continue
            if any(sentences):
                yield wrong or Document(sentences)
            sentences, wrong = [[]], None
        if any(sentences):
            yield wrong or Document(sentences)

    # --- JSON lines ----------------------------------------------------------------------------------

    def _json(self, labelled: bool | None) -> Iterator[Document | Unusable]:
        for row in self.objects():
            try:
                yield row if isinstance(row, Unusable) else self._of_json(row, labelled)
            except Unusable as error:
                yield Unusable(str(error), row.place)

    def _of_json(self, row: Row, labelled: bool | None) -> Document:
        content, line = row.cells, row.line
        tokens, tags = self._names
        if not isinstance(content.get(tokens), list):
            raise Unusable(
                f"is malformed (no list {tokens!r}: write data.tokens=NAME where it has another name)"
            )
        words = _nested(content[tokens], tokens)
        if self.asked.report and not any(words):
            raise Unusable(f"has no words in {tokens!r}")
        names = _nested(content[tags], tags) if isinstance(content.get(tags), list) else None
        if names is None and labelled:
            raise Unusable(f"has no list {tags!r}: write data.tags=NAME where it has another name")
        if names is not None and [len(row) for row in names] != [len(row) for row in words]:
            counts = f"{sum(map(len, words))} words and {sum(map(len, names))} tags"
            raise Unusable(f"is malformed ({counts})")
        sentences = [
            [Word(word, "" if names is None else names[i][j], line) for j, word in enumerate(row)]
            for i, row in enumerate(words)
        ]
        name = content.get("id")
        return Document(sentences, None if name is None else str(name))


def _nested(values: list[Any], name: str) -> list[list[str]]:
    """A list of texts as one sentence, a list of such lists as several."""
    rows = values if values and all(isinstance(value, list) for value in values) else [values]
    for row in rows:
        for value in row:
            if isinstance(value, list | dict | bool) or value is None or not str(value).strip():
                raise Unusable(
                    f"is malformed ({name!r} holds {shortened(str(value))}, where a word should be)"
                )
    return [[without_surrogates(str(value)).strip() for value in row] for row in rows]


# --- spans --------------------------------------------------------------------------------------------


def is_spans(scheme: str) -> bool:
    return scheme in _PREFIXES


def scheme_of(tags: Iterable[str]) -> str:
    """`bio` or `iobes` where every tag is O or has such a prefix, else `plain`."""
    names = {tag for tag in tags if tag != "O"}
    prefixes = {tag[0] for tag in names if tag[1:2] == "-" and len(tag) > 2}
    if not names or any(tag[1:2] != "-" or len(tag) < 3 for tag in names):
        return "plain"
    return next((scheme for scheme, known in _PREFIXES.items() if prefixes <= set(known)), "plain")


def mended(sentence: list[Word], scheme: str, *, repair: bool) -> list[Word]:
    """The sentence with tags that follow the scheme: repaired where asked, refused otherwise.

    Raises:
        Unusable: a tag cannot stand where it does.
    """
    found = list(sentence)
    for place, word in enumerate(sentence):
        before = found[place - 1].tag if place else "O"
        after = sentence[place + 1].tag if place + 1 < len(sentence) else "O"
        right = _right_tag(word.tag, before, after, scheme)
        if right != word.tag and not repair:
            follows = f"after {before}" + (f" and before {after}" if scheme == "iobes" else "")
            raise Unusable(
                f"has the tag {word.tag} {follows}, where {scheme.upper()} has {right}: write "
                "data.repair_tags=true, or",
                f"line {word.line}",
            )
        found[place] = replace(word, tag=right)
    return found


def _right_tag(tag: str, before: str, after: str, scheme: str) -> str:
    """What the tag must be: a span begins with B (or is S alone), goes on with I (and ends with E)."""
    if tag[1:2] != "-":  # O; or an unknown one, which is told elsewhere
        return tag
    prefix, name = tag[0], tag[2:]
    goes_on = prefix in "IE" and before in (f"B-{name}", f"I-{name}")
    if scheme == "bio":
        return f"I-{name}" if goes_on else f"B-{name}"
    ends = prefix in "ES" or after not in (f"I-{name}", f"E-{name}")
    return f"{'ESIB'[(not goes_on) + 2 * (not ends)]}-{name}"
