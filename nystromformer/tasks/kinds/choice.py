"""One of several answers: multiple choice with any number of choices, a whole document before each.

An example is a row of the head's batch (B, K, N): the document as first text, question and choice as second.
Files are JSON lines or tables, in one of these layouts:

    context, question, choices, label     a list of choices, and the number of the right one from 0, its
                                          letter or its text
    sent1, sent2, ending0 … ending3, label                           SWAG
    article, questions, options, answers: a list each, letters; or article, question, options, answer    RACE
    article, questions: objects of question, options, gold_label, which counts from 1                  QuALITY

Shapes: B rows of a batch, K choices of the row with most, N tokens of the longest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.special import softmax
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nystromformer.data.documents import clean
from nystromformer.data.layout import Batch
from nystromformer.errors import UserError
from nystromformer.model import NystromformerForMultipleChoice
from nystromformer.settings.finetune import TaskDataSettings, TaskSettings
from nystromformer.tasks.lists import ListTask
from nystromformer.tasks.reading import own_splits
from nystromformer.tasks.row_files import Asked, Fault, Row, Unusable, shortened
from nystromformer.tasks.rows import Encoded, in_lists, rows_of_texts
from nystromformer.tasks.table_files import TableFile
from nystromformer.tasks.task import Answered, Examples, Found, Outputs, Splits, Texts

_CONTEXTS = ("context", "article", "passage", "sent1")
_QUESTIONS = ("question", "sent2")
_CHOICES = ("choices", "options", "endings")
_LABELS = ("label", "answer", "gold_label")
_NUMBERED = re.compile(r"(?:ending|choice|option)_?(\d+)")
_LAYOUT = "write JSON lines of context, question, choices and label, or SWAG's, RACE's or QuALITY's own files"


@dataclass(frozen=True)
class ChoiceTask(ListTask):
    """Multiple choice: the label is the number of the right choice."""

    head: ClassVar[type[PreTrainedModel]] = NystromformerForMultipleChoice
    told: ClassVar[tuple[str, ...]] = ("prediction", "choice", "probabilities")
    pipeline: ClassVar[str] = "multiple-choice"
    layouts: ClassVar[str] = "FILE (.jsonl or .csv)"

    @classmethod
    def load(cls, settings: TaskSettings, data: TaskDataSettings) -> Splits:
        return own_splits(cls(settings.name, "multiple choice"), data)

    def opened(self, asked: Asked) -> TableFile:
        return TableFile(asked, ())

    def is_labelled(self, file: TableFile) -> bool:
        return any(map(_is_labelled, file.rows()))

    def rows(self, file: TableFile, *, labelled: bool) -> Iterator[Found | Fault]:
        def found(row: Row, number: int) -> Iterator[Found]:
            for place, question in enumerate(_questions(row), start=number):
                yield _example(row.cells, question, str(place), labelled=labelled)

        return file.usable(file.rows_and_faults(), found)

    def check(self, splits: Splits) -> None:
        """Nothing: a choice that is never right in training may well be so elsewhere."""

    def balance(self, labels: Sequence[Any]) -> str:
        most = max(np.bincount(labels))
        return f"always one choice is right in {most / len(labels):.1%}"

    # --- rows and model ------------------------------------------------------------------------------

    def encode(self, examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded:
        """`[CLS] context [SEP] question choice [SEP]` for each choice, cut to length at the context's end.

        A blank `_` of the question is filled in by the choice.

        Raises:
            UserError: a question and its choice alone are longer than `max_length`.
        """
        answers = [[_filled(question, one) for one in choices] for _, question, *choices in examples.texts]
        for name, choices in zip(examples.ids, answers, strict=True):
            longest = max(map(len, tokenizer(choices, verbose=False)["input_ids"]))
            if longest + 1 > max_length:
                raise UserError(
                    f"example {name}: its question and a choice have {longest} tokens, "
                    f"with none of its context: write model.max_length={longest + 64}"
                )
        counts = list(map(len, answers))
        pairs = zip(examples.texts, counts, strict=True)
        contexts = [context for (context, *_), count in pairs for _ in range(count)]
        columns = (contexts, list(chain.from_iterable(answers)))
        flat = rows_of_texts(columns, tokenizer, max_length, cut_first="only_first")
        return in_lists(flat, counts, examples.labels)

    def logits(self, model: nn.Module, texts: Batch) -> Tensor:
        return model(**texts).logits

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(self.scores(model, batch), batch["labels"])

    # --- predictions ---------------------------------------------------------------------------------

    def predict(self, encoded: Encoded, outputs: Outputs) -> list[int]:
        """The number of the likeliest choice."""
        return [int(row.argmax()) for row in outputs]

    def certainty(self, labels: Sequence[Any], outputs: Outputs) -> tuple[NDArray, NDArray] | None:
        """Of the likeliest choice."""
        right = [row.argmax() == label for row, label in zip(outputs, labels, strict=True)]
        return np.array([softmax(row).max() for row in outputs]), np.array(right)

    def answers(self, found: Answered) -> Iterator[dict[str, Any]]:
        """Number and text of the choice, and each choice's probability."""
        columns = (found.examples.texts, found.predictions, found.outputs)
        for (_, _, *choices), number, logits in zip(*columns, strict=True):
            chances = [round(float(chance), 6) for chance in softmax(logits)]
            yield {"prediction": number, "choice": choices[number], "probabilities": chances}

    def repeated(self, texts: Texts) -> dict[str, Any]:
        return {"question": texts[1]}

    def known(self, label: Any) -> dict[str, Any]:
        return {"label": label}

    def usage(self) -> str:
        return """from transformers import AutoModelForMultipleChoice, AutoTokenizer  # no pipeline

folder = "PATH OF THIS FOLDER"
model, tokenizer = AutoModelForMultipleChoice.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
choices = ["question and one choice", "question and another choice"]
documents = ["a document"] * len(choices)
rows = tokenizer(documents, choices, padding=True, truncation="only_first", return_tensors="pt")
print(model(**{name: row[None] for name, row in rows.items()}).logits.softmax(-1))"""


def _filled(question: str, choice: str) -> str:
    if "_" in question:
        return re.sub("_+", lambda _: choice, question, count=1)
    return f"{question} {choice}".strip()


# --- files --------------------------------------------------------------------------------------------


def _is_labelled(row: Row) -> bool:
    with suppress(Unusable):
        return any(_label_of(question) is not None for question in _questions(row))
    return False


def _questions(row: Row) -> Iterator[dict[str, Any]]:
    """What each question of a row has of its own; raises Unusable."""
    questions = row.cells.get("questions")
    if not isinstance(questions, list):
        yield row.cells
        return
    if not questions:
        raise Unusable("is malformed ('questions' is empty)")
    columns = {"options": "options", "answers": "answer"}
    lists = {one: row.cells[many] for many, one in columns.items() if many in row.cells}
    for number, question in enumerate(questions):
        if isinstance(question, dict):  # QuALITY
            yield question
            continue
        for one, values in lists.items():
            if not isinstance(values, list) or len(values) != len(questions):
                raise Unusable(f"is malformed (not one of {one!r} for each of {len(questions)} questions)")
        yield {"question": question, **{one: values[number] for one, values in lists.items()}}


def _label_of(question: dict[str, Any]) -> str | None:
    """The name of its label, if it has one."""
    return next((name for name in _LABELS if question.get(name) not in (None, "")), None)


def _example(row: dict[str, Any], of_question: dict[str, Any], place: str, *, labelled: bool) -> Found:
    """Texts, label and name of an example, from a row and what its question has of its own."""
    listed = _first(of_question, _CHOICES)
    if listed is None:
        numbered = [(int(found[1]), key) for key in of_question if (found := _NUMBERED.fullmatch(key))]
        listed = [of_question[key] for _, key in sorted(numbered)] or None
    if listed is None:
        raise Unusable(f"has no choices: {_LAYOUT}")
    if not isinstance(listed, list) or len(listed) < 2:
        raise Unusable("is malformed (choices are a list of two or more texts)")
    choices = [_text(choice, "a choice") for choice in listed]
    context = _text(_first(row, _CONTEXTS, ""), "the context")
    question = _text(_first(of_question, _QUESTIONS, ""), "the question")
    if not context and not question:
        raise Unusable(f"is malformed (neither a context nor a question): {_LAYOUT}")
    label = None
    if labelled:
        key = _label_of(of_question)
        if key is None:
            raise Unusable(f"has no label ({', '.join(_LABELS)})")
        label = _number(of_question[key], choices, first=key == "gold_label")
    name = _first(of_question, ("id", "question_unique_id"))
    return (context, question, *choices), label, place if name in (None, "") else str(name)


def _first(cells: dict[str, Any], names: Sequence[str], otherwise: Any = None) -> Any:
    """The value of the first of the names that has one."""
    return next((cells[name] for name in names if cells.get(name) is not None), otherwise)


def _text(value: Any, what: str) -> str:
    if isinstance(value, list | dict | bool):
        raise Unusable(f"is malformed ({what} is no text)")
    return clean(str(value))


def _number(value: Any, choices: list[str], *, first: bool) -> int:
    """The right choice, counted from 0, by such a number (with `first` from 1), a letter, or its text."""
    text = "" if isinstance(value, bool | list | dict) else clean(str(value))
    if re.fullmatch("[0-9]+", text):
        number = int(text) - first
    elif re.fullmatch("[A-Z]", text) and text not in choices:
        number = ord(text) - ord("A")
    elif choices.count(text) == 1:
        number = choices.index(text)
    else:
        raise Unusable(
            f"has the label {shortened(str(value))}, which is no number, letter or text of a choice"
        )
    if not 0 <= number < len(choices):
        raise Unusable(f"has the label {shortened(str(value))}, and {len(choices)} choices")
    return number
