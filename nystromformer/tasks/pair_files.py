"""Texts to compare, from tables: pairs, triples with hard negatives, documents alone; teachers' vectors.

    text, text_pair, (negatives …)    a column each; in JSON lines a passage or negatives may be a list
    text                              documents of which two spans are a pair, or texts a teacher knows

A teacher's vectors are a row each, in the order of the file: .npy, or .parquet with one column of lists.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from nystromformer.data.examples import Key
from nystromformer.data.stateless_random import Stream, below, position_bits, row_keys
from nystromformer.errors import UserError
from nystromformer.tasks.row_files import Fault, Row, Unusable
from nystromformer.tasks.rows import Encoded
from nystromformer.tasks.table_files import TableFile
from nystromformer.tasks.task import Examples, Found

_BETWEEN = " \t\n.,:;!?-–—|/"
"""What may stand between a title and the text behind it."""


def pairs_in(
    file: TableFile, text: str, pair: str, negatives: Sequence[str], *, remove_repeated: bool
) -> Iterator[Found | Fault]:
    """Anchor, passage and negatives of each pair; its label says whether the passage begins with the anchor.

    A row with several passages is as many pairs.
    """

    def found(row: Row, number: int) -> Iterator[Found]:
        anchor, passages = filled(row, text), _texts(row, pair)
        if not passages:
            raise Unusable(f"is malformed (no text in {pair!r})")
        wrong = [found for column in negatives for found in _texts(row, column)]
        cut = [without_beginning(passage, anchor) for passage in passages]
        if remove_repeated and "" in cut:
            raise Unusable(f"has nothing in {pair!r} but what is in {text!r}")
        for place, (whole, rest) in enumerate(zip(passages, cut, strict=True), start=number):
            repeats = int(rest != whole and not remove_repeated)
            yield (anchor, rest if remove_repeated else whole, *wrong), repeats, str(place)

    return file.usable(file.rows_and_faults(), found)


def texts_in(
    file: TableFile, text: str, *, words: int = 1, vectors: NDArray[Any] | None = None, given: str = ""
) -> Iterator[Found | Fault]:
    """The text of each row, its label the teacher's vector where there are some.

    Args:
        words: that a text has at least.
        given: the setting that names the vectors, for messages.

    Raises:
        UserError: there are more or fewer vectors than rows.
    """
    most = 0 if vectors is None else len(vectors)

    def found(row: Row, number: int) -> Iterator[Found]:
        if vectors is not None and number >= most:
            raise UserError(f"{file.path} has more rows than the {most:,} vectors of {given}")
        found = filled(row, text)
        if len(found.split()) < words:
            raise Unusable(f"has one word in {text!r}, which cannot be cut in two")
        vector: Any = 0 if vectors is None else vectors[number]
        if not np.isfinite(vector).all():
            raise Unusable(f"has a vector in {given} that is not finite")
        yield (found,), vector, str(number)

    rows = 0
    for row in file.usable(file.rows_and_faults(), found):
        rows += 1
        yield row
    if vectors is not None and rows != most:
        raise UserError(f"{given} holds {most:,} vectors, and {file.path} {rows:,} rows")


def filled(row: Row, column: str) -> str:
    """The text in a column; raises Unusable for none."""
    if found := row.text(column):
        return found
    raise Unusable(f"is malformed (no text in {column!r})")


def without_beginning(passage: str, anchor: str) -> str:
    """The passage without the anchor that it begins with, as abstracts do with their title."""
    rest = passage[len(anchor) :]
    if passage[: len(anchor)].lower() != anchor.lower() or rest[:1].isalnum():
        return passage
    return rest.lstrip(_BETWEEN)


def read_vectors(path: str, setting: str) -> NDArray[Any]:
    """(rows, numbers), a .npy file mapped into memory; raises UserError where there are none."""
    place, given = Path(path).expanduser(), f"{setting}={path}"
    try:
        found = _of_parquet(place) if place.suffix == ".parquet" else np.load(place, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise UserError(f"{given} cannot be read ({error}): write a .npy or .parquet file") from None
    if found.ndim != 2 or not np.issubdtype(found.dtype, np.floating):
        raise UserError(
            f"{given} holds {found.dtype} of shape {found.shape}: it should be a vector of numbers a row"
        )
    return found


def _of_parquet(path: Path) -> NDArray[Any]:
    """The one column of lists of numbers, all of one length; raises ValueError where there is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pq.read_schema(path)
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    names = [field.name for field in schema if any(kind(field.type) for kind in lists)]
    if len(names) != 1:
        raise ValueError(f"{len(names)} of its columns hold lists of numbers, where one should")
    column = pq.read_table(path, columns=names)[names[0]].combine_chunks()
    if column.null_count:
        raise ValueError(f"{column.null_count:,} rows have no vector")
    values = column.flatten().to_numpy(zero_copy_only=False)
    if len(values) % max(len(column), 1):
        raise ValueError("its vectors are not all of one length")
    return values.reshape(len(column), -1)


def _texts(row: Row, column: str) -> list[str]:
    """The text, or the texts of a list, in a column; empty ones are none."""
    value = row.cells.get(column)
    cells = value if isinstance(value, list) else [value]
    found = [Row({column: cell}, row.path, row.line).text(column) for cell in cells]
    return [text for text in found if text]


# --- documents alone: two spans of one are a pair, cut anew in each epoch -----------------------------


@dataclass
class Documents(Encoded):
    """Whole documents; `input_ids` are theirs, of any length, without special tokens.

        document → cut at a word in its middle half → of each side as much as a row holds → [CLS] span [SEP]

    What is drawn is a function of (seed, epoch, row).
    """

    starts: list[list[int]]
    """Where words begin."""
    around: tuple[list[int], list[int]]
    """Token ids before and behind a span."""
    most: int
    """Tokens of a span with those around it."""

    def texts_of(self, row: int) -> int:
        return 2

    @property
    def truncated(self) -> float:
        """Share of the documents whose halves are longer than a span."""
        return float((self.full_lengths > 2 * self.most).mean())

    def drawn(self, keys: Sequence[Key], seed: int) -> tuple[Encoded, list[int]]:
        epochs, rows = np.array(keys, np.int64).T
        words = position_bits(row_keys(seed, epochs, rows), Stream.SPANS, 4)
        spans = [self._spans(row, drawn) for row, drawn in zip(rows.tolist(), words, strict=True)]
        lengths = np.array([max(map(len, pair)) for pair in spans], np.int64)
        return Encoded(spans, None, None, lengths, lengths, widths=self.widths), list(range(len(spans)))

    def _spans(self, row: int, words: NDArray[np.uint64]) -> list[list[int]]:
        """Both sides of the cut, in either order."""
        ids, starts = self.input_ids[row], self.starts[row]
        low = max(len(starts) // 4, 1)
        cut = low + int(below(words[:1], max(3 * len(starts) // 4 - low, 1))[0])
        first = self._window(ids[: starts[cut]], starts[:cut], words[1:2])
        second = self._window(ids, starts[cut:], words[2:3])
        return [second, first] if words[3] % 2 else [first, second]

    def _window(self, ids: list[int], starts: list[int], word: NDArray[np.uint64]) -> list[int]:
        """From one of the starts to the end, or to where a row is full."""
        before, behind = self.around
        room = self.most - len(before) - len(behind)
        filling = [start for start in starts if len(ids) - start >= room] or starts[:1]
        start = filling[int(below(word, len(filling))[0])]
        return [*before, *ids[start : start + room], *behind]


def documents(examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Documents:
    """The examples' texts, uncut; raises UserError for one that makes fewer than two tokens."""
    found = tokenizer(
        [text for (text,) in examples.texts], add_special_tokens=False, truncation=False, verbose=False
    )
    starts = []
    for number, ids in enumerate(found["input_ids"]):
        if len(ids) < 2:
            raise UserError(
                f"example {examples.ids[number]} has {len(ids)} tokens, which cannot be cut in two"
            )
        begins = _word_starts(found.word_ids(number)) if found.is_fast else []
        starts.append(begins if len(begins) > 1 else list(range(len(ids))))
    empty = tokenizer("")["input_ids"]
    border = empty.index(tokenizer.cls_token_id) + 1
    around = (empty[:border], empty[border:])
    full = np.array([len(ids) + len(empty) for ids in found["input_ids"]], np.int64)
    widest = np.minimum(3 * full // 4 + len(empty), max_length)
    return Documents(
        found["input_ids"], None, examples.labels, widest, full, starts=starts, around=around, most=max_length
    )


def _word_starts(words: Sequence[int | None]) -> list[int]:
    return [place for place, word in enumerate(words) if place == 0 or word != words[place - 1]]
