"""Questions with their contexts and right answers: SQuAD's own JSON (1.1, 2.0), or JSON lines of the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, ClassVar

from nystromformer.data.documents import without_surrogates
from nystromformer.data.text_files import lines
from nystromformer.errors import UserError
from nystromformer.tasks.row_files import Asked, Fault, Row, RowFile, Unusable, shortened
from nystromformer.tasks.task import Found

_HINT = "write SQuAD's .json, or .jsonl with context, question and answers"


class QuestionFile(RowFile):
    """Questions with their contexts: SQuAD's JSON, or JSON lines."""

    advice: ClassVar[str] = "mend it"

    def __init__(self, asked: Asked) -> None:
        super().__init__(asked, (".json", ".jsonl"), _HINT)

    @property
    def is_labelled(self) -> bool:
        """Whether a question has answers, or says that it has none."""
        return any(
            isinstance(row, Row) and ("answers" in row.cells or "is_impossible" in row.cells)
            for row in self._questions()
        )

    def rows(self, *, labelled: bool) -> Iterator[Found | Fault]:
        """Question and context, right answers, name; raises Malformed for a question that cannot be used."""

        def found(row: Row, number: int) -> Iterator[Found]:
            yield _question(row.cells, number, labelled=labelled)

        return self.usable(self._questions(), found)

    def _questions(self) -> Iterator[Row | Unusable]:
        """Each with its context."""
        if self.is_json:
            yield from self.objects()
            return
        try:
            content = json.loads("\n".join(line.text for line in lines(self.path)))
        except (ValueError, RecursionError):
            content = None
        articles = content.get("data") if isinstance(content, dict) else None
        if not isinstance(articles, list):
            raise UserError(
                f"{self.path} is not of SQuAD's layout (no list 'data'): write such a file, or .jsonl"
            )
        try:
            for article in articles:
                for paragraph in article["paragraphs"]:
                    for question in paragraph["qas"]:
                        name = question.get("id", "without id")
                        cells = {**question, "context": paragraph["context"]}
                        yield Row(cells, self.path, 0, within=f"question {name}")
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self.path} is not of SQuAD's layout ({type(error).__name__}: {error}): data holds "
                "articles, those paragraphs with a context and qas"
            ) from None


def _question(content: dict[str, Any], number: int, *, labelled: bool) -> Found:
    for name in ("question", "context"):
        if not isinstance(content.get(name), str) or not content[name].strip():
            raise Unusable(f"is malformed (no text in {name!r})")
    question, context = (without_surrogates(content[name]) for name in ("question", "context"))
    answers = _answers(content, context) if labelled else None
    given = content.get("id")
    return (question.strip(), context), answers, str(number if given is None else given)


def _answers(content: dict[str, Any], context: str) -> list[tuple[int, str]]:
    """The right answers of a question; none where it says so."""
    if content.get("is_impossible") is True:
        return []
    given: Any = content.get("answers")
    if isinstance(given, dict):  # the hub's layout
        texts, starts = given.get("text"), given.get("answer_start")
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            raise Unusable("is malformed ('answers' has not as many 'text' as 'answer_start')")
        given = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
    if not isinstance(given, list):
        raise Unusable("has no list 'answers': an empty one says that there is no answer")
    return [_right(answer, context) for answer in given]


def _right(answer: Any, context: str) -> tuple[int, str]:
    held = answer if isinstance(answer, dict) else {}
    text, start = held.get("text"), held.get("answer_start")
    text = without_surrogates(text) if isinstance(text, str) else text
    if not isinstance(text, str) or not isinstance(start, int) or not text:
        raise Unusable("is malformed (an answer is no object of 'text' and 'answer_start')")
    if context[start : start + len(text)] != text or start < 0:
        raise Unusable(
            f"has the answer {shortened(text)} at character {start} of its context, where "
            f"{shortened(context[max(start, 0) : max(start, 0) + len(text)])} stands"
        )
    return start, text
