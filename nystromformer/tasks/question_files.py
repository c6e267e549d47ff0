"""Questions with their contexts and right answers: SQuAD's own JSON (1.1, 2.0), or JSON lines of the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nystromformer.data.documents import without_surrogates
from nystromformer.data.text_files import expand, kind_of, lines
from nystromformer.errors import UserError
from nystromformer.tasks.reading import Found
from nystromformer.tasks.table_files import Fault, Faults, Unusable, is_unicode, shortened


class QuestionFile:
    """Questions with their contexts: SQuAD's JSON, or JSON lines.

    Args:
        setting: what the path was given by, for messages.
        skip, report: see Faults.
    """

    def __init__(self, path: Path, *, setting: str, skip: bool, report: bool = False) -> None:
        hint = "write SQuAD's .json, or .jsonl with context, question and answers"
        if path.is_dir():
            raise UserError(f"{setting}: {str(path)!r} is a folder: {hint}")
        (self.path,) = expand([str(path)], setting, (".json", ".jsonl"), hint)
        self._faults = Faults(self.path, setting, skip=skip, report=report)
        self.skipped = self._faults.skipped

    @property
    def is_labelled(self) -> bool:
        """Whether a question has answers, or says that it has none."""
        return any(
            isinstance(question, dict) and ("answers" in question or "is_impossible" in question)
            for _, question in self._questions()
        )

    def rows(self, *, labelled: bool) -> Iterator[Found | Fault]:
        """Question and context, right answers, name; raises Malformed for a question that cannot be used."""
        number = 0
        for place, question in self._questions():
            try:
                yield _question(question, number, labelled=labelled)
            except Unusable as error:
                faults = self._faults.reject(place, str(error), "mend it")
                yield from faults
                number += len(faults)
            else:
                number += 1

    def _questions(self) -> Iterator[tuple[str, Any]]:
        """Where each stands, and what it holds with its context."""
        if kind_of(self.path) == ".jsonl":
            for line in lines(self.path, errors=self._faults.errors):
                if line.text.strip():
                    yield f"line {line.number}", _parsed(line.text)
            return
        content = _parsed("\n".join(line.text for line in lines(self.path)))
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
                        yield f"question {name}", {**question, "context": paragraph["context"]}
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self.path} is not of SQuAD's layout ({type(error).__name__}: {error}): data holds "
                "articles, those paragraphs with a context and qas"
            ) from None


def _parsed(text: str) -> Any:
    """A JSON value; where it is none, the reason, which is no object."""
    if not is_unicode([text]):
        return "no UTF-8"
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"no JSON: {error}"


def _question(content: Any, number: int, *, labelled: bool) -> Found:
    if not isinstance(content, dict):
        raise Unusable(f"is malformed ({content if isinstance(content, str) else 'no JSON object'})")
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
