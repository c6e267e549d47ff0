"""Parts of a file to predict: rows, what the model makes of them, and the lines that they become."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from nystromformer.errors import UserError
from nystromformer.tasks.row_files import Fault
from nystromformer.tasks.rows import Encoded
from nystromformer.tasks.scores import Reliability, reliability
from nystromformer.tasks.table_files import written
from nystromformer.tasks.task import Answered, Found, Outputs, Task

MOST_ROWS = 2048
"""Of a chunk."""
SHOWN = 5
"""Rows that cannot be read which are shown."""


@dataclass
class Counts:
    """What has been done; JSON."""

    rows: int = 0
    """Rows done, with those that cannot be read."""
    examples: int = 0
    errors: int = 0
    encoded: int = 0
    """Rows that the model read, and those of them that were cut."""
    cut: int = 0
    labelled: bool = False
    first_errors: list[str] = field(default_factory=list)
    reliability: Reliability = field(default_factory=list)
    """Of labelled rows, where the task gives probabilities."""
    weighed: int = 0
    """Examples that it is of: not all, where an older version began."""


@dataclass
class Progress(Counts):
    """How far it is; JSON."""

    of: dict[str, Any] = field(kw_only=True)
    """What it is the progress of, and by which settings."""
    total: int = field(kw_only=True)
    """Rows of the file."""
    width: int = 0
    """Numbers of a vector."""
    finished: bool = False
    sizes: dict[str, int] = field(default_factory=dict)

    def after(self, part: Counts) -> Progress:
        """With a part that is done besides."""
        sums = {name: getattr(self, name) + value for name, value in vars(part).items()}
        sums |= {"labelled": self.labelled or part.labelled, "first_errors": sums["first_errors"][:SHOWN]}
        known = [np.array(x) for x in (self.reliability, part.reliability) if x]
        sums["reliability"] = np.sum(known, axis=0).tolist() if known else []
        return replace(self, **sums)


class Part(Answered):
    """A chunk of rows, and what the model makes of it."""

    encoded: Encoded

    def __init__(self, task: Task, rows: list[Found | Fault]) -> None:
        super().__init__(task.collected.of(rows), (), ())
        self._task = task
        self.rows = rows

    @property
    def faults(self) -> list[tuple[int, Fault]]:
        """Each with its place among the rows."""
        return [(place, row) for place, row in enumerate(self.rows) if isinstance(row, Fault)]

    def encode(self, tokenizer: PreTrainedTokenizerBase, max_length: int, path: Path | None) -> None:
        """Make rows of token ids; with a `path` an example of which none can be made is a fault of it."""
        if not len(self.examples):
            return
        try:
            self.encoded = self._task.encode(self.examples, tokenizer, max_length)
        except UserError:
            if path is None:
                raise
            for place, row in enumerate(self.rows):
                if isinstance(row, Fault):
                    continue
                one = self._task.collected.of([row])
                try:
                    self._task.encode(one, tokenizer, max_length)
                except UserError as error:
                    self.rows[place] = Fault(path, f"example {one.ids[0]}", f"cannot be read ({error})")
            self.examples = self._task.collected.of(self.rows)
            self.encode(tokenizer, max_length, None)

    def predict(self, outputs: Outputs) -> None:
        self.outputs = outputs
        self.predictions = self._task.predict(self.encoded, outputs)

    @property
    def counts(self) -> Counts:
        faults, read, labels = self.faults, len(self.examples) > 0, self.examples.labels
        certain = self._task.certainty(labels, self.outputs) if labels else None
        return Counts(
            len(self.rows),
            len(self.examples),
            len(faults),
            len(self.encoded) if read else 0,
            int((self.encoded.full_lengths > self.encoded.lengths).sum()) if read else 0,
            labels is not None,
            [str(fault) for _, fault in faults[:SHOWN]],
            reliability(*certain) if certain else [],
            len(self.examples) if certain else 0,
        )

    def records(self, first: int) -> Iterator[dict[str, Any]]:
        """A record of each row, `first` the number of the first one."""
        answers = iter(self._task.answers(self) if self.examples.ids else ())
        ids = iter(self.examples.ids)
        for number, row in enumerate(self.rows, start=first):
            if isinstance(row, Fault):
                yield _of_fault(number, row)
            else:
                yield {"id": next(ids), **next(answers)}

    def errors(self, first: int) -> Iterator[dict[str, Any]]:
        return (_of_fault(first + place, fault) for place, fault in self.faults)


def chunks(rows: Iterable[Found | Fault], characters: int) -> Iterator[list[Found | Fault]]:
    """The rows in lists of at most MOST_ROWS that hold some `characters` in all."""
    chunk: list[Found | Fault] = []
    held = 0
    for row in rows:
        chunk.append(row)
        if not isinstance(row, Fault):
            held += sum(len(text) + 1 for text in row[0])
        if len(chunk) == MOST_ROWS or held >= characters:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def _of_fault(number: int, fault: Fault) -> dict[str, Any]:
    return {"id": str(number), "error": str(fault)}


def json_lines(records: Iterable[Any]) -> str:
    return "".join(json.dumps(x, ensure_ascii=False, default=_plain) + "\n" for x in records)


def _plain(value: Any) -> Any:
    """Arrays and dataclasses as JSON's lists."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else list(vars(value).values())


def table(task: Task, records: Iterable[Mapping[str, Any]], *, head: bool) -> str:
    """Tab-separated; of an object with an entry for each label, a column each."""
    columns: list[tuple[str, ...]] = [("id",)]
    for name in task.told:
        whole = name.removesuffix(".*")
        columns += [(name,)] if whole == name else [(whole, label) for label in task.labels]
    columns.append(("error",))
    rows = [[_cell(record, column) for column in columns] for record in records]
    return written([[".".join(column) for column in columns], *rows] if head else rows)


def _cell(record: Any, column: tuple[str, ...]) -> str:
    for name in column:
        record = None if record is None else record.get(name)
    if record is None or isinstance(record, str):
        return record or ""
    return json.dumps(record, ensure_ascii=False, default=_plain)
