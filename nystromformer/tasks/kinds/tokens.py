"""A tag for each word: named entities, parts of speech, any markup of words; whole documents in one row.

An example is a document or, with data.unit=sentence, a sentence. A document too long for one row is cut
between sentences into several; no word is lost. The head sees every piece, and a word's tag is that of its
first.

    document → words → pieces → rows of at most max_length tokens → a tag a word → sentences again

Shapes: B rows of a batch, N tokens of the longest, W words of the row with most, C tags.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.special import softmax
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nystromformer.data.layout import Batch
from nystromformer.errors import UserError
from nystromformer.model import NystromformerForTokenClassification
from nystromformer.model.losses import IGNORED
from nystromformer.settings.finetune import TaskDataSettings, TaskSettings
from nystromformer.tasks.plots import draw_class_scores
from nystromformer.tasks.reading import own_splits
from nystromformer.tasks.row_files import Asked, Fault, Unusable, to_learn
from nystromformer.tasks.rows import Encoded, padded
from nystromformer.tasks.scores import class_scores, span_scores
from nystromformer.tasks.tagged_files import Document, TaggedFile, is_spans, mended, scheme_of
from nystromformer.tasks.task import Answered, Examples, Found, Outputs, Splits, Task

_AT_ONCE = 10_000
"""Words tokenized in one call."""

Sentences = list[list[int]]
"""The tag ids of a document: a list a sentence."""
T = TypeVar("T")


@dataclass
class Documents(Examples):
    """Documents; their `texts` are words, their labels `Sentences`."""

    sentences: list[list[int]] = field(default_factory=list)
    """How many words each sentence of each has."""


@dataclass
class TokenRows(Encoded):
    """Rows of documents; labels are the tag ids of a row's words."""

    firsts: list[list[int]] = field(default_factory=list)
    """Where each word of a row begins."""
    documents: list[int] = field(default_factory=list)
    """Which document each row is of, in order."""
    sentences: list[list[int]] = field(default_factory=list)
    """As of the documents."""

    @property
    def examples(self) -> int:
        return len(self.sentences)


@dataclass(frozen=True)
class TokenTask(Task):
    """Tags of words; where they mark spans (`B-PER`, `I-PER`, `O`), the figure is the spans' F1."""

    scheme: str = "plain"
    """`plain` tags, or spans as `bio` or `iobes`."""
    unit: str = "document"
    tokens: str = "tokens"
    """Names in JSON lines."""
    tags: str = "tags"
    repair: bool = False

    head: ClassVar[type[PreTrainedModel]] = NystromformerForTokenClassification
    told: ClassVar[tuple[str, ...]] = ("tokens", "prediction", "probability")
    pipeline: ClassVar[str] = "token-classification"
    layouts: ClassVar[str] = "FILE (CoNLL columns or .jsonl)"
    collected: ClassVar[type[Examples]] = Documents
    predictions: ClassVar[str] = "predictions.conll"
    pictures: ClassVar[tuple[str, ...]] = ("classes.png",)

    # --- settings and data ---------------------------------------------------------------------------

    @classmethod
    def load(cls, settings: TaskSettings, data: TaskDataSettings) -> Splits:
        task = cls(
            settings.name, "tags of words", unit=data.unit, tokens=data.tokens, tags=data.tags,
            repair=data.repair_tags,
        )  # fmt: skip
        train = task.opened(to_learn(data, "train"))
        documents = (
            document for document in train.documents(labelled=True) if isinstance(document, Document)
        )
        tags = Counter(tag for document in documents for tag in document.tags())
        if not tags:
            raise UserError(f"{train.path} has no words with tags: write a word and its tag on each line")
        found = scheme_of(tags)
        scheme = found if data.scheme == "auto" else data.scheme
        if is_spans(scheme) and not is_spans(found):
            raise UserError(
                f"data.scheme={scheme}: {train.path} has tags without the prefixes of spans, such as "
                f"{next(tag for tag in tags if tag != 'O')!r}: write data.scheme=plain"
            )
        task = replace(task, scheme=scheme, labels=tuple(_in_order(mended_tags(tags, scheme))))
        metrics = ("f1", "precision", "recall", "accuracy") if is_spans(scheme) else ("accuracy", "f1_macro")
        task = replace(task, metrics=metrics, score=metrics[:1])
        return own_splits(task, data)

    def opened(self, asked: Asked) -> TaggedFile:
        return TaggedFile(asked, unit=self.unit, tokens=self.tokens, tags=self.tags)

    def is_labelled(self, file: TaggedFile) -> bool:
        """Whether a word has a tag."""
        documents = (row for row in file.raw(labelled=None) if isinstance(row, Document))
        return any(any(document.tags()) for document in documents)

    def rows(self, file: TaggedFile, *, labelled: bool) -> Iterator[Found | Fault]:
        """Words, tag ids, name and lengths of sentences of each document."""
        ids = {tag: number for number, tag in enumerate(self.labels)}

        def found(document: Document, number: int) -> Iterator[Found]:
            sentences = document.sentences
            if labelled and is_spans(self.scheme):
                sentences = [mended(words, self.scheme, repair=self.repair) for words in sentences]
            for word in chain(*sentences) if labelled else ():
                if word.tag not in ids:
                    what = f"has the tag {word.tag!r}, which no training example has"
                    raise Unusable(what, f"line {word.line}")
            yield (
                tuple(word.text for words in sentences for word in words),
                [[ids[word.tag] for word in words] for words in sentences] if labelled else None,
                document.name or str(number),
                [len(words) for words in sentences],
            )

        return file.usable(file.documents(labelled=labelled), found)

    def check(self, splits: Splits) -> None:
        if len(self.labels) < 2:
            raise UserError(f"{splits.origin}: all words have one tag, {self.labels[0]!r}: bring another")

    # --- rows and model ------------------------------------------------------------------------------

    def encode(self, examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int) -> TokenRows:
        """`[CLS] words [SEP]`: as many whole sentences a row as it has room for."""
        assert isinstance(examples, Documents)
        pieces = _pieces(examples.texts, tokenizer)
        first, *last = tokenizer("")["input_ids"]
        room = max_length - 1 - len(last)
        empty = np.empty(0, np.int64)
        rows = TokenRows(
            [], None, None if examples.labels is None else [], empty, empty,
            sentences=examples.sentences,
        )  # fmt: skip
        for number, words in enumerate(examples.texts):
            tags = list(chain(*examples.labels[number])) if examples.labels is not None else []
            lengths = [min(len(pieces[word]), room) for word in words]
            for begin, end in _cuts(lengths, examples.sentences[number], room):
                ids, firsts = [first], []
                for word in words[begin:end]:
                    firsts.append(len(ids))
                    ids += pieces[word][:room]
                rows.input_ids.append(ids + last)
                rows.firsts.append(firsts)
                rows.documents.append(number)
                if rows.labels is not None:
                    rows.labels.append(tags[begin:end])
        rows.lengths = rows.full_lengths = np.array([len(ids) for ids in rows.input_ids], np.int64)
        return rows

    def collate(self, encoded: Encoded, rows: Sequence[int], pad_token_id: int, *, labelled: bool) -> Batch:
        """labels (B, N), each word's at its first piece; or else `firsts` (B, W), −1 beyond a row's words."""
        assert isinstance(encoded, TokenRows)
        batch = padded(encoded, rows, pad_token_id)
        firsts = [encoded.firsts[row] for row in rows]
        if labelled:
            assert encoded.labels is not None
            labels = np.full(tuple(batch["input_ids"].shape), IGNORED, np.int64)
            for place, row in enumerate(rows):
                labels[place, firsts[place]] = encoded.labels[row]
            batch["labels"] = torch.from_numpy(labels)
            return batch
        most = max(map(len, firsts))
        batch["firsts"] = torch.tensor([places + [-1] * (most - len(places)) for places in firsts])
        return batch

    def items(self, batch: Batch) -> int:
        return int((batch["labels"] != IGNORED).sum())

    def outputs(self, model: PreTrainedModel, batch: Batch) -> Outputs:
        """A row's logits, (words, C)."""
        given = {name: column for name, column in batch.items() if name != "firsts"}
        firsts = batch["firsts"]
        logits = model(**given).logits.float()
        places = firsts.clamp(min=0)[..., None].expand(-1, -1, logits.shape[-1])
        of_words = logits.gather(1, places).cpu().numpy()
        words = (firsts >= 0).sum(1).tolist()
        return [row[:length].copy() for row, length in zip(of_words, words, strict=True)]

    # --- predictions ---------------------------------------------------------------------------------

    def predict(self, encoded: Encoded, outputs: Outputs) -> list[Sentences]:
        """The likeliest tag id of each word."""
        assert isinstance(encoded, TokenRows)
        tags: list[list[int]] = [[] for _ in encoded.sentences]
        for document, logits in zip(encoded.documents, outputs, strict=True):
            tags[document] += logits.argmax(axis=1).tolist()
        return [_cut_up(row, lengths) for row, lengths in zip(tags, encoded.sentences, strict=True)]

    def losses(self, encoded: Encoded, outputs: Outputs) -> Tensor:
        labels = torch.tensor(list(chain.from_iterable(encoded.labels or [])))
        return F.cross_entropy(torch.from_numpy(np.concatenate(list(outputs))), labels, reduction="none")

    def figures(self, labels: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
        """Spans: strict F1, precision and recall of whole ones, as seqeval counts; accuracy of words."""
        from sklearn.metrics import f1_score

        truth, found = self._names(labels), self._names(predictions)
        words, answers = list(chain(*truth)), list(chain(*found))
        figures = {"accuracy": float(np.mean(np.array(words) == np.array(answers)))}
        if is_spans(self.scheme):
            figures |= span_scores(truth, found, self.scheme)
        else:
            figures["f1_macro"] = float(f1_score(words, answers, average="macro", zero_division=0))
        return self.with_score({name: figures[name] for name in self.metrics})

    def draw(
        self, labels: Sequence[Any], predictions: Sequence[Any], folder: Path, title: str
    ) -> dict[str, Any]:
        """Precision, recall and F1 of each class of span, or of each tag."""
        truth, found = self._names(labels), self._names(predictions)
        classes = class_scores(truth, found, self.scheme)
        draw_class_scores(classes, folder / "classes.png", title)
        return {"classes": classes}

    def certainty(self, labels: Sequence[Any], outputs: Outputs) -> tuple[NDArray, NDArray] | None:
        """Of each word's tag."""
        logits = np.concatenate(list(outputs))
        truth = np.array(list(chain.from_iterable(chain.from_iterable(labels))))
        return softmax(logits, axis=1).max(axis=1), logits.argmax(axis=1) == truth

    def answers(self, found: Answered) -> Iterator[dict[str, Any]]:
        """Words, their tags and those tags' probabilities; lists of sentences where there are several."""
        chances = chain.from_iterable(softmax(row, axis=1).max(axis=1).tolist() for row in found.outputs)
        for words, sentences in zip(found.examples.texts, found.predictions, strict=True):
            lengths = [len(sentence) for sentence in sentences]
            tags = [[self.labels[tag] for tag in sentence] for sentence in sentences]
            of_words = [round(chance, 6) for chance in islice(chances, len(words))]
            columns = (_cut_up(list(words), lengths), tags, _cut_up(of_words, lengths))
            yield {
                name: column[0] if len(column) == 1 else column
                for name, column in zip(self.told, columns, strict=True)
            }

    def written(self, found: Answered, *, first: int = 0) -> str:
        """CoNLL columns: the word, its tag where it is known, the prediction."""
        lines: list[str] = []
        labels = found.examples.labels or [None] * len(found.examples)
        for words, truth, sentences in zip(found.examples.texts, labels, found.predictions, strict=True):
            if self.unit == "document":
                lines += ["-DOCSTART-", ""]
            names = iter(words)
            for number, sentence in enumerate(sentences):
                for place, tag in enumerate(sentence):
                    known = [] if truth is None else [self.labels[truth[number][place]]]
                    lines.append("\t".join([next(names), *known, self.labels[tag]]))
                lines.append("")
        return "".join(line + "\n" for line in lines)

    def usage(self) -> str:
        strategy = ', aggregation_strategy="first"' if is_spans(self.scheme) else ""
        return f"""tag = pipeline("{self.pipeline}", model="PATH OF THIS FOLDER"{strategy})
print(tag("words of a text"))"""

    def _names(self, documents: Sequence[Sentences]) -> list[list[str]]:
        """Tags of each sentence by name: a span ends with its sentence."""
        return [[self.labels[tag] for tag in sentence] for document in documents for sentence in document]


def mended_tags(tags: Iterable[str], scheme: str) -> set[str]:
    """The tags, and with each class of span those that a repair may write."""
    if not is_spans(scheme):
        return set(tags)
    classes = {tag[2:] for tag in tags if tag != "O"}
    prefixes = "BI" if scheme == "bio" else "BIES"
    return {"O", *(f"{prefix}-{name}" for name in classes for prefix in prefixes)}


def _in_order(tags: Iterable[str]) -> list[str]:
    """O first, the tags of a class beside each other."""
    return sorted(tags, key=lambda tag: (tag != "O", tag[2:] if tag[1:2] == "-" else tag, tag))


def _pieces(texts: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """The token ids of each different word, as it stands after a space; an unknown one where it has none."""
    words = list(dict.fromkeys(word for text in texts for word in text))
    found: dict[str, list[int]] = {}
    for start in range(0, len(words), _AT_ONCE):
        part = words[start : start + _AT_ONCE]
        ids = tokenizer([f" {word}" for word in part], add_special_tokens=False, verbose=False)["input_ids"]
        found |= {word: row or [tokenizer.unk_token_id] for word, row in zip(part, ids, strict=True)}
    return found


def _cuts(lengths: list[int], sentences: list[int], room: int) -> Iterator[tuple[int, int]]:
    """Begin and end of each row's words: between sentences, and within those longer than a row."""
    begin = used = 0
    ends = list(accumulate(sentences))
    for end, size in zip(ends, sentences, strict=True):
        needed = sum(lengths[end - size : end])
        if used and used + needed > room:
            yield begin, end - size
            begin, used = end - size, 0
        if needed <= room:
            used += needed
            continue
        for word in range(end - size, end):
            if used + lengths[word] > room:
                yield begin, word
                begin, used = word, 0
            used += lengths[word]
    if begin < (ends[-1] if ends else 0):
        yield begin, ends[-1]


def _cut_up(values: list[T], lengths: list[int]) -> list[list[T]]:
    ends = list(accumulate(lengths))
    return [values[end - size : end] for end, size in zip(ends, lengths, strict=True)]
