"""Collections of documents with queries and judgements: folders in BEIR's layout, or in TREC's.

    corpus.jsonl      or *documents.jsonl, collection.tsv: _id (or id), title if there are some, text
    queries.jsonl     or *queries.jsonl, *queries*.tsv: _id (or id), text
    qrels/test.tsv    or qrels/test.txt, *qrels.tsv …: query, document, grade, with a header or without;
                      or TREC's four columns, query, iteration, document, grade

Each may be compressed. Documents are read in blocks, so that there may be any number of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from nystromformer.data.text_files import COMPRESSION, kind_of, lines
from nystromformer.errors import UserError
from nystromformer.tasks.row_files import Asked, Unusable, listed, shortened
from nystromformer.tasks.table_files import TableFile

Judgements = dict[str, dict[str, int]]
"""The grade of each judged document of each query; from 1 on it is relevant."""

_DOCUMENTS = ("corpus.jsonl", "*documents.jsonl", "corpus.tsv", "collection.tsv")
_QUERIES = ("queries.jsonl", "*queries.jsonl", "queries.tsv", "*queries*.tsv")
_AT_ONCE = 4096
_IDS = ("_id", "id", "docid", "doc_id", "qid", "query_id")
_TEXTS = ("text", "contents", "body", "query")


class Block(NamedTuple):
    """Documents in the order of their file."""

    ids: list[str]
    texts: list[str]


@dataclass(frozen=True)
class Collection:
    """A folder; making one looks whether its files are there."""

    folder: Path
    setting: str
    """What the folder was given by, for messages."""
    one_is_best: bool = False
    """Whether grade 1 is the best, as in Cranfield's files: grades are then turned round."""

    def __post_init__(self) -> None:
        if not self.folder.is_dir():
            raise UserError(f"{self.setting}={self.folder} is no folder: write one with {_DOCUMENTS[0]}")
        self._the(_DOCUMENTS)
        self._the(_QUERIES)

    def files(self, split: str) -> tuple[Path, Path, Path]:
        """Documents, queries and judgements; raises UserError where there are none of the split."""
        return self._the(_DOCUMENTS), self._the(_QUERIES), self.judged_by(split)

    def documents(self, at_once: int) -> Iterator[Block]:
        """Every document, title and text in one, at most so many at a time.

        Raises:
            UserError: with file and line, for one that has no id or that of another.
        """
        block = Block([], [])
        for name, title, text in self._records(_DOCUMENTS):
            block.ids.append(name)
            # Cranfield's texts begin with their titles.
            block.texts.append(text if text.startswith(title) else f"{title} {text}".strip())
            if len(block.ids) == at_once:
                yield block
                block = Block([], [])
        if block.ids:
            yield block

    def queries(self) -> dict[str, str]:
        """The text of each query; raises UserError for one without id or text."""
        found = {name: text for name, _, text in self._records(_QUERIES)}
        if empty := [name for name, text in found.items() if not text]:
            raise UserError(f"{self._the(_QUERIES)}: query {empty[0]!r} has no text: mend or remove it")
        return found

    def judgements(self, split: str) -> Judgements:
        """The judgements of a split.

        Raises:
            UserError: there are none, or with file and line, one cannot be read.
        """
        path = self.judged_by(split)
        found: Judgements = {}
        for query, document, grade in _judgements_in(path):
            found.setdefault(query, {})[document] = grade
        if self.one_is_best:
            worst = max((grade for grades in found.values() for grade in grades.values()), default=0)
            found = {
                query: {name: worst + 1 - grade if grade > 0 else grade for name, grade in grades.items()}
                for query, grades in found.items()
            }
        return found

    def judged_by(self, split: str) -> Path:
        """The file of a split's judgements; raises UserError where there is none."""
        endings = ("tsv", "txt", "qrels")
        own = [f"{name}.{ending}" for name in (f"qrels/{split}", f"*qrels.{split}") for ending in endings]
        whole = [f"*qrels.{ending}" for ending in endings[:2]]
        return self._the(own + whole, f"judgements of the split {split!r}")

    def check(self, judgements: Judgements, queries: dict[str, str], ids: set[str], split: str) -> None:
        """Raise UserError for judgements of queries or documents that are not there, and for none at all."""
        path = self.judged_by(split)
        judged = {name: None for grades in judgements.values() for name in grades}
        for what, there, named in (("queries", queries, judgements), ("documents", ids, judged)):
            if unknown := [name for name in named if name not in there]:
                raise UserError(
                    f"{path} judges {len(unknown):,} {what} that are not there, {listed(unknown)}: "
                    "bring them, or remove those lines"
                )
        if not any(grade > 0 for grades in judgements.values() for grade in grades.values()):
            raise UserError(f"{path} calls no document relevant: a grade from 1 on does")

    def names(self) -> list[str]:
        """The id of every document."""
        return [name for block in self.documents(_AT_ONCE) for name in block.ids]

    def texts_of(self, names: set[str]) -> dict[str, str]:
        """The texts of some documents."""
        blocks = (zip(*block, strict=True) for block in self.documents(_AT_ONCE))
        return {name: text for block in blocks for name, text in block if name in names}

    def _records(self, patterns: Sequence[str]) -> Iterator[tuple[str, str, str]]:
        """Id, title and text of each row of a file."""
        path = self._the(patterns)
        file = _table(path, self.setting)
        seen: set[str] = set()
        for row in file.rows():
            try:
                name, title, text = row.first(_IDS), row.text("title"), row.first(_TEXTS)
                if not name:
                    raise Unusable(f"has no {' or '.join(map(repr, _IDS[:2]))}")
                if name in seen:
                    raise Unusable(f"has the id {shortened(name)} of a row above it")
            except Unusable as error:
                file.reject(row, str(error))
            seen.add(name)
            yield name, title, text
        if not seen:
            raise UserError(f"{path} holds no rows: bring some")

    def _the(self, patterns: Sequence[str], what: str = "") -> Path:
        """The one file that matches the first pattern which any does."""
        for pattern in patterns:
            below = self.folder / Path(pattern).parent
            plain = Path(pattern).name
            there = sorted(below.iterdir()) if below.is_dir() else []
            matching = [p for p in there if p.is_file() and fnmatch(_without_compression(p), plain)]
            if len(matching) > 1:
                raise UserError(
                    f"{self.setting}={self.folder} holds several files {pattern}, "
                    f"{listed(path.name for path in matching)}: leave one there"
                )
            if matching:
                return matching[0]
        what = f"has no {what}" if what else "lacks a file"
        raise UserError(f"{self.setting}={self.folder} {what}: it needs {' or '.join(patterns)}")


def _without_compression(path: Path) -> str:
    return path.stem if path.suffix.lower() in COMPRESSION else path.name


def _table(path: Path, setting: str) -> TableFile:
    """A table by its header, where it has one; or id and text in two columns, as MS MARCO has them."""
    if kind_of(path) != ".jsonl":
        first = next((line.text for line in lines(path)), "")
        if not {cell.strip().lower() for cell in first.split("\t")} & {*_IDS}:
            return TableFile(Asked(path, setting, quotes=False), (), headless=("id", "text"))
    return TableFile(Asked(path, setting), ())


def _judgements_in(path: Path) -> Iterator[tuple[str, str, int]]:
    """Query, document and grade of each line."""
    seen: dict[tuple[str, str], int] = {}
    for number, text in lines(path):
        cells = text.split("\t") if text.count("\t") in (2, 3) else text.split()
        if not cells:
            continue
        query, document, grade = (cells[0], cells[-2], cells[-1]) if len(cells) in (3, 4) else ("", "", "")
        whole = _whole(grade)
        if whole is None and number == 1 and len(cells) in (3, 4):
            continue  # a header
        if whole is None:
            raise UserError(
                f"{path}, line {number} is no judgement ({shortened(text)}): write query, document and a "
                "whole grade, with tabs between"
            )
        key = query.strip(), document.strip()
        if seen.setdefault(key, whole) != whole:
            raise UserError(
                f"{path}, line {number} judges {key} again, by {whole} after {seen[key]}: leave one"
            )
        yield *key, whole
    if not seen:
        raise UserError(f"{path} holds no judgements: bring some")


def _whole(text: str) -> int | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number) if number.is_integer() else None
