"""Extractive question answering: where in a context the answer to a question stands, or that it has none.

A whole context is one row up to `max_length` tokens; a longer one is cut into windows that overlap. Files are
SQuAD's own JSON (1.1, 2.0) or JSON lines of id, context, question and answers.

    question, context → rows (windows) → first and last token → an answer by its characters → exact match, F1

Shapes: B rows of a batch, N tokens of the longest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nystromformer.data.documents import without_surrogates
from nystromformer.data.layout import Batch
from nystromformer.data.text_files import lines
from nystromformer.errors import UserError
from nystromformer.model import NystromformerForQuestionAnswering
from nystromformer.settings.finetune import TaskDataSettings, TaskSettings
from nystromformer.tasks.reading import own_splits
from nystromformer.tasks.row_files import Asked, Fault, Row, RowFile, Unusable, shortened
from nystromformer.tasks.rows import Encoded
from nystromformer.tasks.scores import answer_scores
from nystromformer.tasks.task import Answered, Examples, Found, Outputs, Splits, Task, Texts

_AT_ONCE = 100
_SHOWN = 5
"""Answers of each question in a file of predictions."""
_CANDIDATES = 20
"""First and last tokens looked at in each row, the likeliest."""


class Span(NamedTuple):
    """A possible answer: characters `start` to `end` of the context."""

    text: str
    start: int
    end: int
    score: float
    """Logits of its first and of its last token, added."""


@dataclass(frozen=True)
class Answer:
    """What is answered: the best span, or nothing."""

    text: str
    """Empty for no answer."""
    spans: tuple[Span, ...]
    """The best ones, the best first."""
    nothing: float
    """The score of no answer: [CLS]'s, in the window where it is lowest."""

    @property
    def margin(self) -> float:
        """By how much no answer scores higher than the best span."""
        return self.nothing - self.spans[0].score if self.spans else float("inf")


@dataclass
class AnswerRows(Encoded):
    """Windows; a row's label is the places of an answer's first and last token, (0, 0) where it has none."""

    offsets: list[NDArray[np.int32]] = field(default_factory=list)
    """(N, 2) of each row: the characters of the context that a token is of; −1 where it is of none."""
    questions: list[int] = field(default_factory=list)
    """Which example each row is of, in order."""
    contexts: list[str] = field(default_factory=list)
    """Of each example."""

    @property
    def examples(self) -> int:
        return len(self.contexts)


@dataclass(frozen=True)
class AnswerTask(Task):
    """Extractive question answering; a label is the right answers, each (first character, text)."""

    has_unanswerable: bool = False
    """Whether some questions have no answer, as in SQuAD 2.0."""
    threshold: float = 0.0
    """With them: no answer is given where it scores higher than the best span by more than this."""
    stride: int = 128
    max_answer_tokens: int = 30
    metrics: tuple[str, ...] = field(default=("exact", "f1"), kw_only=True)
    score: tuple[str, ...] = field(default=("f1",), kw_only=True)

    head: ClassVar[type[PreTrainedModel]] = NystromformerForQuestionAnswering
    num_labels: ClassVar[int] = 2
    """A token as the first of the answer, and as the last."""
    pipeline: ClassVar[str] = "question-answering"
    layouts: ClassVar[str] = "FILE (SQuAD's .json, or .jsonl)"

    # --- settings and data ---------------------------------------------------------------------------

    @classmethod
    def load(cls, settings: TaskSettings, data: TaskDataSettings) -> Splits:
        task = cls(
            settings.name, "question answering", stride=data.stride, max_answer_tokens=data.max_answer_tokens
        )
        splits = own_splits(task, data)
        parts = [splits.train, *splits.dev.values(), *splits.test.values()]
        if all(answers for part in parts for answers in part.labels or []):
            return splits
        sides = ("exact_answerable", "f1_answerable", "exact_unanswerable", "f1_unanswerable")
        return replace(splits, task=replace(task, has_unanswerable=True, metrics=(*task.metrics, *sides)))

    def opened(self, asked: Asked) -> QuestionFile:
        return QuestionFile(asked, (".json", ".jsonl"), _HINT)

    def is_labelled(self, file: QuestionFile) -> bool:
        """Whether a question has answers, or says that it has none."""
        rows = (row for row in file.questions() if isinstance(row, Row))
        return any("answers" in row.cells or "is_impossible" in row.cells for row in rows)

    def rows(self, file: QuestionFile, *, labelled: bool) -> Iterator[Found | Fault]:
        def found(row: Row, number: int) -> Iterator[Found]:
            yield _question(row, number, labelled=labelled)

        return file.usable(file.questions(), found)

    def check(self, splits: Splits) -> None:
        if not any(splits.train.labels or []):
            raise UserError(f"{splits.origin}: no training question has an answer: bring some")

    def balance(self, labels: Sequence[Any]) -> str:
        unanswerable = sum(not answers for answers in labels) / len(labels)
        return f"{unanswerable:.1%} without an answer"

    # --- rows and model ------------------------------------------------------------------------------

    @property
    def told(self) -> tuple[str, ...]:
        silence = ("no_answer_score",) if self.has_unanswerable else ()
        return ("prediction", "start", "end", *silence, "n_best")

    def encode(self, examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int) -> AnswerRows:
        """`[CLS] question [SEP] context [SEP]`, several windows where that is longer than `max_length`.

        A question takes at most half a row.

        Raises:
            UserError: windows of so few tokens would not move on.
        """
        none = np.empty(0, np.int64)
        contexts = [context for _, context in examples.texts]
        labels: list[Any] | None = None if examples.labels is None else []
        rows, types = AnswerRows([], None, labels, none, none, contexts=contexts), []
        stride = min(self.stride, max_length // 4)
        for start in range(0, len(examples), _AT_ONCE):
            texts = examples.texts[start : start + _AT_ONCE]
            questions = [_cut_question(question, tokenizer, max_length // 2) for question, _ in texts]
            found = tokenizer(
                questions, [context for _, context in texts], truncation="only_second",
                max_length=max_length, stride=stride, return_overflowing_tokens=True,
                return_offsets_mapping=True, verbose=False,
            )  # fmt: skip
            rows.input_ids += found["input_ids"]
            types += found.get("token_type_ids", [])
            for row, of_part in enumerate(found["overflow_to_sample_mapping"]):
                example = start + of_part
                second = np.array([part == 1 for part in found.sequence_ids(row)])
                offsets = np.where(second[:, None], np.array(found["offset_mapping"][row]), -1)
                rows.offsets.append(offsets.astype(np.int32))
                rows.questions.append(example)
                if rows.labels is not None and examples.labels is not None:
                    rows.labels.append(_places(examples.labels[example], offsets))
        rows.token_type_ids = types or None
        rows.lengths = np.array([len(ids) for ids in rows.input_ids], np.int64)
        rows.full_lengths = rows.lengths
        return rows

    def collate(self, encoded: Encoded, rows: Sequence[int], pad_token_id: int, *, labelled: bool) -> Batch:
        """With labels also start_positions and end_positions, (B,)."""
        batch = super().collate(encoded, rows, pad_token_id, labelled=labelled)
        if labelled:
            batch["start_positions"], batch["end_positions"] = batch.pop("labels").unbind(1)
        return batch

    def outputs(self, model: PreTrainedModel, batch: Batch) -> Outputs:
        """A row's logits of the first and of the last token, (2, its own tokens)."""
        found = model(**batch)
        logits = torch.stack([found.start_logits, found.end_logits], 1).float().cpu().numpy()
        mask = batch.get("attention_mask")
        lengths = [logits.shape[2]] * len(logits) if mask is None else mask.sum(1).tolist()
        return [row[:, :length].copy() for row, length in zip(logits, lengths, strict=True)]

    # --- predictions ---------------------------------------------------------------------------------

    def predict(self, encoded: Encoded, outputs: Outputs) -> list[Answer]:
        """The best span of all windows of each question, or none."""
        assert isinstance(encoded, AnswerRows)
        spans: list[list[Span]] = [[] for _ in encoded.contexts]
        nothing = [float("inf")] * len(spans)
        for question, offsets, logits in zip(encoded.questions, encoded.offsets, outputs, strict=True):
            nothing[question] = min(nothing[question], float(logits[0, 0] + logits[1, 0]))
            spans[question] += self._spans(encoded.contexts[question], offsets, logits)
        return [self._answer(found, none) for found, none in zip(spans, nothing, strict=True)]

    def _answer(self, spans: list[Span], nothing: float) -> Answer:
        best: dict[tuple[int, int], Span] = {}  # two windows may hold the same one
        for span in sorted(spans, key=lambda span: -span.score):
            best.setdefault((span.start, span.end), span)
        answer = Answer("", tuple(islice(best.values(), _SHOWN)), nothing)
        silent = not answer.spans or (self.has_unanswerable and answer.margin > self.threshold)
        return answer if silent else replace(answer, text=answer.spans[0].text)

    def _spans(self, context: str, offsets: NDArray[np.int32], logits: NDArray[np.float32]) -> Iterator[Span]:
        """The likeliest spans of a window: within the context, not backwards, not too long."""
        inside = np.flatnonzero(offsets[:, 0] >= 0)
        first, last = (inside[np.argsort(-row[inside], kind="stable")[:_CANDIDATES]] for row in logits)
        for start in first:
            for end in last:
                if start <= end < start + self.max_answer_tokens:
                    begin, stop = int(offsets[start, 0]), int(offsets[end, 1])
                    score = float(logits[0, start] + logits[1, end])
                    yield Span(context[begin:stop], begin, stop, score)

    def figures(self, labels: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
        """Exact match and F1 as SQuAD's official scripts define them, as shares of 1."""
        scores = [
            answer_scores(answer.text, right) for answer, right in zip(predictions, labels, strict=True)
        ]
        sides = {
            "": list(range(len(labels))),
            "_answerable": [n for n, right in enumerate(labels) if right],
            "_unanswerable": [n for n, right in enumerate(labels) if not right],
        }
        figures = {
            f"{name}{side}": float(np.mean([scores[n][column] for n in chosen])) if chosen else 0.0
            for side, chosen in sides.items()
            for column, name in enumerate(("exact", "f1"))
        }
        return self.with_score({name: figures[name] for name in self.metrics})

    def fitted(self, encoded: Encoded, labels: Sequence[Any], outputs: Outputs) -> AnswerTask:
        """With the threshold that gives the highest F1 on these examples, where some have no answer."""
        if not self.has_unanswerable:
            return self
        answers = self.predict(encoded, outputs)
        return replace(self, threshold=best_threshold(labels, answers))

    def answers(self, found: Answered) -> Iterator[dict[str, Any]]:
        """The answer, where it stands, and the best spans; an empty answer for none."""
        for answer in found.predictions:
            best = [span._asdict() for span in answer.spans]
            told = {"prediction": answer.text}
            if answer.text:
                told |= {"start": best[0]["start"], "end": best[0]["end"]}
            if self.has_unanswerable:
                told["no_answer_score"] = answer.nothing
            yield {**told, "n_best": best}

    def repeated(self, texts: Texts) -> dict[str, Any]:
        return {"question": texts[0]}

    def known(self, label: Any) -> dict[str, Any]:
        return {"answers": [text for _, text in label]}

    def from_json(self, prediction: Any) -> Answer:
        text, spans, nothing = prediction
        return Answer(text, tuple(Span(*span) for span in spans), nothing)

    def usage(self) -> str:
        return """from transformers import AutoModelForQuestionAnswering, AutoTokenizer  # no pipeline

folder, question, context = "PATH OF THIS FOLDER", "a question", "a text that holds its answer"
model = AutoModelForQuestionAnswering.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
row = tokenizer(question, context, return_tensors="pt")
logits = model(**row)
first, last = int(logits.start_logits.argmax()), int(logits.end_logits.argmax())
print(tokenizer.decode(row["input_ids"][0, first : last + 1]))"""


def best_threshold(labels: Sequence[Any], answers: Sequence[Answer]) -> float:
    """The margin up to which the best span is given, for the highest F1; the lowest of equals."""
    rows = sorted(
        (answer.margin, answer_scores(answer.spans[0].text if answer.spans else "", right)[1], not right)
        for answer, right in zip(answers, labels, strict=True)
    )
    score = best = float(sum(unanswerable for _, _, unanswerable in rows))  # nothing is ever answered
    threshold = min((margin for margin, _, _ in rows), default=0.0) - 1.0
    for margin, f1, unanswerable in rows:
        score += f1 - unanswerable
        if score > best and np.isfinite(margin):
            best, threshold = score, margin
    return float(threshold)


# --- rows ---------------------------------------------------------------------------------------------


def _cut_question(question: str, tokenizer: PreTrainedTokenizerBase, most: int) -> str:
    found = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ends = found["offset_mapping"]
    return question if len(ends) <= most else question[: ends[most - 1][1]]


def _places(answers: Sequence[tuple[int, str]], offsets: NDArray[np.int32]) -> tuple[int, int]:
    """First and last token of the first right answer in a window, (0, 0) where it does not hold all of it."""
    if not answers:
        return 0, 0
    start, text = answers[0]
    first = np.flatnonzero((offsets[:, 0] <= start) & (offsets[:, 1] > start))
    end = start + len(text)
    last = np.flatnonzero((offsets[:, 0] < end) & (offsets[:, 1] >= end) & (offsets[:, 0] >= 0))
    return (int(first[0]), int(last[-1])) if len(first) and len(last) else (0, 0)


# --- files --------------------------------------------------------------------------------------------


_HINT = "write SQuAD's .json, or .jsonl with context, question and answers"


class QuestionFile(RowFile):
    """Questions with their contexts: SQuAD's JSON, or JSON lines."""

    advice: ClassVar[str] = "mend it"

    def questions(self) -> Iterator[Row | Unusable]:
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


def _question(row: Row, number: int, *, labelled: bool) -> Found:
    """Question and context, right answers, name."""
    content = row.cells
    for name in ("question", "context"):
        if not isinstance(content.get(name), str) or not content[name].strip():
            raise Unusable(f"is malformed (no text in {name!r})")
    question, context = (without_surrogates(content[name]) for name in ("question", "context"))
    answers = _answers(content, context) if labelled else None
    return (question.strip(), context), answers, row.name("id", number)


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
