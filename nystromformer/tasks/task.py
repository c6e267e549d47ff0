"""What a kind of task is: the questions that everything else here asks, and nothing about one kind.

A kind is a class derived from `Task`, in a file of its own in `kinds/`, and a line in
`settings.finetune.KINDS`. Its instances are tasks: they know their columns, labels and metrics. Most kinds
train on a row an example and predict from a row of logits; the answers for those are given here.

    load, read → Examples → encode → Encoded → collate → Batch → loss
                                               outputs of rows → predictions of examples → figures, files

Shapes: B rows of a batch, N tokens of the longest, C labels.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nystromformer.data.layout import Batch
from nystromformer.errors import UserError
from nystromformer.model import NystromformerConfig
from nystromformer.settings.finetune import (
    KINDS,
    EvaluateSettings,
    FinetuneSettings,
    TaskDataSettings,
    TaskSettings,
    kind_named,
)
from nystromformer.tasks.row_files import Asked, Fault, shortened, to_predict
from nystromformer.tasks.rows import Encoded, padded
from nystromformer.tasks.scores import METRICS

Texts = tuple[str, ...]
"""The texts of an example, in the order of the task's columns."""
Found = tuple[Any, ...]
"""An example of a file: texts, label (None where labels are not read), name, and whatever else the kind's
`Examples` have an entry of."""
Outputs = Sequence[NDArray[np.float32]]
"""What a model makes of each row, e.g. (rows, C) logits; of one length a row, or of several."""


@dataclass
class Examples:
    """Examples in the order of their file."""

    texts: list[Texts]
    labels: list[Any] | None
    """What is to be predicted of each, as the task's kind holds it; None where there are no labels."""
    ids: list[str]
    """What a submission or a file of predictions calls each."""

    def __len__(self) -> int:
        return len(self.texts)

    @classmethod
    def of(cls: type[E], rows: Iterable[Found | Fault]) -> E:
        """Those of a file's rows; faults are left out."""
        found = zip(*(row for row in rows if not isinstance(row, Fault)), strict=True)
        texts, labels, *others = [list(column) for column in found] or [[] for _ in fields(cls)]
        return cls(texts, labels if labels and labels[0] is not None else None, *others)

    def take(self: E, indices: Iterable[int]) -> E:
        """Those at these places; every field has an entry for each example, or is None."""
        chosen = list(indices)
        columns: Any = (getattr(self, column.name) for column in fields(self))
        taken: Any = (None if values is None else [values[i] for i in chosen] for values in columns)
        return type(self)(*taken)


E = TypeVar("E", bound=Examples)


def joined(parts: Sequence[E]) -> E:
    """All examples of several, of one kind, in their order."""
    columns: Any = ([getattr(part, column.name) for part in parts] for column in fields(parts[0]))
    whole: Any = (
        None if any(x is None for x in each) else list(chain.from_iterable(each)) for each in columns
    )
    return type(parts[0])(*whole)


@dataclass
class Answered:
    """Examples, what is predicted of each, and the outputs of the rows that this is made of."""

    examples: Examples
    predictions: Sequence[Any]
    outputs: Outputs


@dataclass
class Splits:
    """All data of one task."""

    task: Task
    train: Examples
    dev: dict[str, Examples]
    """Held-out sets by name, labelled: they choose the best checkpoint."""
    test: dict[str, Examples] = field(default_factory=dict)
    """Labelled ones are evaluated once, at the end; those without labels are for a submission."""
    origin: str = ""
    """Where they came from, for people."""
    skipped: list[str] = field(default_factory=list)
    """Rows that were left out, each with its place and the reason."""


@dataclass(frozen=True)
class Task(ABC):
    """One thing to learn, with what its kind knows about data, model, loss, figures and files."""

    name: str
    title: str
    labels: tuple[str, ...] = field(default=(), kw_only=True)
    """Names of the classes, by label id; empty where there are none."""
    metrics: tuple[str, ...] = field(default=("accuracy",), kw_only=True)
    score: tuple[str, ...] = field(default=("accuracy",), kw_only=True)
    """The metrics whose mean is the task's figure; the best checkpoint has the highest."""

    head: ClassVar[type[PreTrainedModel]]
    """The model's class; its encoder is `nystromformer`."""
    pipeline: ClassVar[str]
    """transformers' name for what the model does, e.g. `text-classification`."""
    layouts: ClassVar[str] = "FILE (.csv, .tsv or .jsonl)"
    """What data.train may be."""
    choosable: ClassVar[tuple[str, ...]] = ()
    """The values of task.metric; empty where that says nothing."""
    collected: ClassVar[type[Examples]] = Examples
    """What its examples are held in."""
    library: ClassVar[str] = "transformers"
    """The library that opens the model, by the hub's name for it."""
    forgotten: ClassVar[str] = (
        "transformers opens the folder with its own Nystromformer, whose classification head is\n"
        "another one: it would warn, and answer by chance."
    )
    """What happens where this project is not imported, for the model's card."""
    predictions: ClassVar[str] = "predictions.jsonl"
    """File that `evaluate` writes."""
    joint: ClassVar[bool] = False
    """Whether the loss of an example depends on the others of its batch."""
    pictures: ClassVar[tuple[str, ...]] = ()
    """Files that `draw` writes."""

    # --- settings and data ---------------------------------------------------------------------------

    @classmethod
    def complaints(cls, settings: FinetuneSettings) -> Iterator[str]:
        """A line for each setting that does not fit the kind, with what to write instead."""
        task = settings.task
        if not settings.data.has_train:
            yield (
                f"data.train is empty: with task={task.name} write data.train={cls.layouts}, or data.hub=NAME"
            )
        if cls.choosable and task.metric not in cls.choosable:
            allowed = ", ".join(cls.choosable)
            yield f"task.metric={task.metric!r} does not fit task.kind={task.kind}: write one of {allowed}"
        if settings.submission:
            yield f"submission=true is for GLUE, not for task={task.name}: write false"

    @classmethod
    @abstractmethod
    def load(cls, settings: TaskSettings, data: TaskDataSettings) -> Splits:
        """All data of the task that the settings name, and the task as the data make it.

        Raises:
            UserError: something is missing or, with its file and line, malformed.
        """

    def of_file(self, settings: EvaluateSettings) -> Task:
        """The task with the columns of a file instead of its own; raises UserError for one too many."""
        return self

    def read(self, settings: EvaluateSettings) -> Iterator[Found | Fault]:
        """The examples of a file of any size, in its order; labelled where it has labels.

        With `settings.reported` a row that cannot be used is a fault among them; labels are read where
        `settings.measured`.

        Raises:
            UserError: no such file or column, or a malformed row.
        """
        file = self.opened(to_predict(settings))
        return self.rows(file, labelled=settings.measured and self.is_labelled(file))

    @abstractmethod
    def opened(self, asked: Asked) -> Any:
        """A file to learn from or to predict; raises UserError where it is not there or lacks a column."""

    def is_labelled(self, file: Any) -> bool:
        """Whether an opened file has labels."""
        return False

    @abstractmethod
    def rows(self, file: Any, *, labelled: bool) -> Iterator[Found | Fault]:
        """The examples of an opened file, and in their place the rows that it reports.

        Raises:
            Malformed: naming file and line, for a row of no use that is neither skipped nor reported.
        """

    def check(self, splits: Splits) -> None:
        """Raise UserError for data that this task cannot be learned from; none of the sets is empty."""
        for name, count in self.counts(splits.train.labels).items():
            if not count:
                raise UserError(
                    f"{splits.origin}: no training example has the label {shortened(name)}: bring some, or "
                    "take more examples"
                )

    def strata(self, labels: Sequence[Any]) -> Sequence[Hashable]:
        """The class of each example: what is held back, or taken, is so of each in its proportion."""
        return [0] * len(labels)

    def counts(self, labels: Sequence[Any] | None) -> dict[str, int]:
        """How many examples, or labels, each class has; empty where there are no classes."""
        counts = Counter(_ids_in(labels or []) if self.labels else [])
        return {name: counts[number] for number, name in enumerate(self.labels)}

    def balance(self, labels: Sequence[Any]) -> str:
        """What there is to say about the labels, printed before training."""
        total = max(sum(self.counts(labels).values()), 1)
        shares = [f"{name} {count / total:.1%}" for name, count in self.counts(labels).items()]
        return ", ".join(shares[:6]) + (f" and {len(shares) - 6} more classes" if len(shares) > 6 else "")

    @abstractmethod
    def encode(self, examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded:
        """The examples as rows of at most `max_length` tokens, in their order."""

    def collate(self, encoded: Encoded, rows: Sequence[int], pad_token_id: int, *, labelled: bool) -> Batch:
        """What the head takes: padded rows and, where `labelled`, what it makes the loss of."""
        batch = self.padded(encoded, rows, pad_token_id)
        if labelled:
            assert encoded.labels is not None
            batch["labels"] = self.targets([encoded.labels[row] for row in rows], batch)
        return batch

    def padded(self, encoded: Encoded, rows: Sequence[int], pad_token_id: int) -> Batch:
        """Some rows as a batch without labels."""
        return padded(encoded, rows, pad_token_id)

    def training_batch(
        self, encoded: Encoded, rows: Sequence[int], pad_token_id: int, at_once: int | None
    ) -> Batch:
        """What the model learns from at once: `at_once` rows, or, where the loss is `joint`, all of a step.

        Args:
            at_once: `training.micro_batch_size`, by which a joint kind itself cuts what it computes.
        """
        return self.collate(encoded, rows, pad_token_id, labelled=True)

    def targets(self, labels: Sequence[Any], batch: Batch) -> Tensor:
        """The labels of a batch as its head takes them; (B,) class ids."""
        return torch.tensor(labels, dtype=torch.int64)

    # --- model ---------------------------------------------------------------------------------------

    @property
    def num_labels(self) -> int:
        """Columns of the head."""
        return len(self.labels)

    def configure(self, config: NystromformerConfig) -> None:
        """Write into a configuration what the head needs: columns, names of the labels, the loss."""
        config.num_labels = self.num_labels
        if self.labels:
            config.id2label = dict(enumerate(self.labels))
            config.label2id = {name: number for number, name in enumerate(self.labels)}

    def items(self, batch: Batch) -> int:
        """What the loss is a mean over, counted in a batch of the CPU's memory: rows, or real labels."""
        return len(batch["input_ids"])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean over a micro-batch's `items`, without waiting for the device."""
        return model(**batch).loss

    def outputs(self, model: PreTrainedModel, batch: Batch) -> Outputs:
        """What the predictions are made of, for each row; (B, C) logits."""
        return model(**batch).logits.float().cpu().numpy()

    # --- predictions ---------------------------------------------------------------------------------

    @abstractmethod
    def predict(self, encoded: Encoded, outputs: Outputs) -> list[Any]:
        """The prediction of each example, comparable with its label."""

    def losses(self, encoded: Encoded, outputs: Outputs) -> Tensor:
        """The loss of each item of labelled rows, (items,), float32: a row's cross-entropy."""
        rows = zip(outputs, encoded.labels or [], strict=True)
        return torch.stack(
            [F.cross_entropy(torch.from_numpy(logits), torch.tensor(label)) for logits, label in rows]
        )

    def figures(self, labels: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
        """Each of the task's metrics, and `score`: examples' labels against their predictions."""
        truth, answers = np.asarray(labels, np.float64), np.asarray(predictions, np.float64)
        return self.with_score({name: METRICS[name](truth, answers) for name in self.metrics})

    def with_score(self, figures: dict[str, float]) -> dict[str, float]:
        """The figures and `score`, the mean of those that the best checkpoint is chosen by."""
        return {**figures, "score": float(np.mean([figures[name] for name in self.score]))}

    def fitted(self, encoded: Encoded, labels: Sequence[Any], outputs: Outputs) -> Task:
        """The task with what is chosen on the held-out examples once the model is trained: thresholds."""
        return self

    def draw(
        self, labels: Sequence[Any], predictions: Sequence[Any], folder: Path, title: str
    ) -> dict[str, Any]:
        """Draw `pictures` into a folder; what they show, for the result's JSON."""
        return {}

    def certainty(self, labels: Sequence[Any], outputs: Outputs) -> tuple[NDArray, NDArray] | None:
        """Probabilities of what is predicted of labelled examples, and whether each of that is true.

        None where a kind gives no probabilities.
        """
        return None

    @property
    def told(self) -> tuple[str, ...]:
        """The names that `answers` may have; with `.*` behind where it is an entry for each of `labels`."""
        return ("prediction",)

    def answers(self, found: Answered) -> Iterator[dict[str, Any]]:
        """What `predict` writes of each example: its prediction as people read it, and scores."""
        return ({"prediction": prediction} for prediction in found.predictions)

    def from_json(self, prediction: Any) -> Any:
        """A prediction that was JSON in between, its arrays as lists: comparable with a label again."""
        return prediction

    def records(self, found: Answered) -> Iterator[Mapping[str, Any]]:
        """An example's line in the file of predictions that `evaluate` writes."""
        examples = found.examples
        for row, answer in enumerate(self.answers(found)):
            record = {"id": examples.ids[row], **self.repeated(examples.texts[row]), **answer}
            yield record if examples.labels is None else record | self.known(examples.labels[row])

    def repeated(self, texts: Texts) -> dict[str, Any]:
        """What a record repeats of its example's texts."""
        return {}

    def known(self, label: Any) -> dict[str, Any]:
        """A label as a record gives it."""
        return {}

    def written(self, found: Answered, *, first: int = 0) -> str:
        """The text of a file of predictions from example `first` on: the texts of the parts make the file."""
        return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in self.records(found))

    def files(self, config: NystromformerConfig, max_length: int) -> Mapping[str, Any]:
        """Further files of the model's folder that other libraries read: path → content, as JSON."""
        return {}

    def usage(self) -> str:
        """Python for the model's card, after the imports of this package and of `pipeline`."""
        return f'model = pipeline("{self.pipeline}", model="PATH OF THIS FOLDER")\nprint(model("a text"))'


def _ids_in(labels: Iterable[Any]) -> Iterator[int]:
    """The class ids in labels, each of which is one, a list of several, or a list of such lists."""
    for label in labels:
        if isinstance(label, list):
            yield from _ids_in(label)
        else:
            yield label


def stored(task: Task) -> dict[str, Any]:
    """A task as JSON: its kind's name, and its fields."""
    kind = next(name for name in KINDS if kind_named(name) is type(task))
    return {"kind": kind, "task": asdict(task)}


def from_stored(content: Mapping[str, Any]) -> Task:
    """Back again; a version without kinds wrote none. Raises KeyError, TypeError or ValueError."""
    fields = {key: _tuples(value) for key, value in content["task"].items()}
    return kind_named(content.get("kind", "sequence"))(**fields)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
