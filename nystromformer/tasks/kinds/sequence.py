"""A class or a number for a whole text or a pair of texts: GLUE, film reviews, and tables of one's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.special import softmax
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nystromformer.data.documents import clean
from nystromformer.data.layout import Batch
from nystromformer.errors import UserError
from nystromformer.model import NystromformerConfig, NystromformerForSequenceClassification
from nystromformer.settings.finetune import EvaluateSettings, FinetuneSettings, TaskDataSettings, TaskSettings
from nystromformer.tasks.plots import draw_confusion
from nystromformer.tasks.reading import id_of, in_order, number_in, own_splits, unlike, usable_rows
from nystromformer.tasks.row_files import Asked, Fault, Row, Unusable, shortened, to_learn, to_predict
from nystromformer.tasks.rows import Encoded, rows_of_texts
from nystromformer.tasks.table_files import PREDICTIONS, TableFile, written
from nystromformer.tasks.task import Answered, Examples, Found, Outputs, Splits, Task, Texts

_MOST_CLASSES = 1000


@dataclass(frozen=True)
class SequenceTask(Task):
    """Classification, or with `regression` a number."""

    texts: tuple[str, ...]
    """Names of the columns with the text, or with the two texts of a pair."""
    label: str
    """Name of the column with the label."""
    values: tuple[str, ...] = ()
    """What stands in that column, by label id; empty for regression, and where the data tell."""
    regression: bool = False
    folder: str = ""
    """Its folder in GLUE's original layout; empty for what is not of GLUE."""
    headless: tuple[str, ...] = ()
    """Names for the columns of labelled files that have no header line."""
    dev_files: tuple[tuple[str, str], ...] = (("dev", "dev.tsv"),)
    """Name and file of each held-out set."""
    test_files: tuple[tuple[str, str], ...] = (("test", "test.tsv"),)
    submissions: tuple[tuple[str, str], ...] = ()
    """Name of each unlabelled test set and its file in a submission."""
    hub: tuple[str, str | None] = ("nyu-mll/glue", None)
    """Repository and configuration on the hub."""
    hub_texts: tuple[str, ...] = ()
    """Names of the text columns there, where they are other ones."""

    head: ClassVar[type[PreTrainedModel]] = NystromformerForSequenceClassification
    pipeline: ClassVar[str] = "text-classification"
    predictions: ClassVar[str] = "predictions.tsv"
    pictures: ClassVar[tuple[str, ...]] = ("confusion.png",)

    @property
    def num_labels(self) -> int:
        return 1 if self.regression else len(self.labels)

    @property
    def answer_columns(self) -> tuple[str, ...]:
        """Those with the labels."""
        return (self.label,)

    @property
    def columns(self) -> tuple[str, ...]:
        """Those that a labelled file must have."""
        return (*self.texts, *self.answer_columns)

    @property
    def is_glue(self) -> bool:
        return bool(self.folder)

    # --- settings and data ---------------------------------------------------------------------------

    @classmethod
    def complaints(cls, settings: FinetuneSettings) -> Iterator[str]:
        from nystromformer.tasks import benchmarks  # its tasks are of this kind

        task, data = settings.task, settings.data
        known = (*benchmarks.GLUE_TASKS, "glue", *benchmarks.REVIEW_TASKS, "custom")
        if task.name not in known:
            yield f"task.name={task.name!r} is unknown: write task={'|'.join(known)}"
        allowed = ("pearson", "spearman") if task.regression else ("accuracy", "f1", "matthews")
        if task.name == "custom" and task.metric not in allowed:
            yield (
                f"task.metric={task.metric!r} does not fit task.regression={str(task.regression).lower()}: "
                f"write one of {', '.join(allowed)}"
            )
        if task.name in benchmarks.REVIEW_TASKS and (data.source == "folder" or data.root):
            yield (
                f"data.root has no place for task={task.name}: write data.source=samples or data.source=hub"
            )
        if data.source == "samples" and task.name not in benchmarks.REVIEW_TASKS:
            reviews = " and ".join(benchmarks.REVIEW_TASKS)
            yield f"data.source=samples holds {reviews}, not {task.name}: write hub or folder"
        if task.name == "custom":
            yield from super().complaints(settings)
        if task.name != "custom" and data.hub:
            yield f"data.hub is for data of your own, not for task={task.name}: write task=custom, or null"
        if settings.submission and task.name in benchmarks.REVIEW_TASKS:
            yield f"submission=true is for GLUE, not for task={task.name}: write false"

    @classmethod
    def load(cls, settings: TaskSettings, data: TaskDataSettings) -> Splits:
        from nystromformer.tasks import benchmarks

        if settings.name == "custom":
            return custom_splits(custom_task(settings, data), data)
        return benchmarks.load(benchmarks.task_named(settings.name), data)

    def rows(
        self, file: TableFile, *, labelled: bool, id_column: str | None = None
    ) -> Iterator[Found | Fault]:
        if not labelled:
            return usable_rows(file, self._texts, None, id_column)
        # A file to predict may give a class by its name.
        names = (self.values,) if file.asked.is_to_learn else (self.values, self.labels)
        ids = {clean(name): number for known in names for number, name in enumerate(known)}
        return usable_rows(file, self._texts_to_learn, lambda row: self._label(row, ids), id_column)

    def _texts(self, row: Row) -> Texts:
        return tuple(row.text(column) for column in self.texts)

    def _texts_to_learn(self, row: Row) -> Texts:
        """The texts; none is nothing to learn from, though a row without label is to be answered."""
        texts = self._texts(row)
        if not any(texts):
            raise Unusable(f"is malformed (no text in {' and '.join(map(repr, self.texts))})")
        return texts

    def values_in(self, row: Row) -> list[str]:
        """What a row has in the label's column, the one value of it; raises Unusable for none."""
        if value := row.label(self.label):
            return [value]
        raise Unusable(f"has no label in {self.label!r}")

    def _label(self, row: Row, ids: dict[str, int]) -> Any:
        (value,) = self.values_in(row)
        if not self.regression:
            return id_of(value, ids)
        return number_in(value, self.label)

    def of_file(self, settings: EvaluateSettings) -> SequenceTask:
        texts = list(self.texts)
        if settings.text is not None:
            texts[0] = settings.text
        if settings.text_pair is not None:
            if len(texts) == 1:
                raise UserError(
                    f"text_pair={settings.text_pair}: {self.title} has one text, no pairs: write null"
                )
            texts[1] = settings.text_pair
        return replace(self, texts=tuple(texts), label=settings.label or self.label)

    def opened(self, asked: Asked) -> TableFile:
        from nystromformer.tasks.benchmarks import in_glues_layout

        if asked.is_to_learn:
            return TableFile(asked, self.columns)
        glues, name = in_glues_layout(asked.path, self), asked.path.name
        if glues and asked.quotes is None:
            asked = replace(asked, quotes=False)
        headless = self.headless if glues and name in ("train.tsv", "dev.tsv") else ()  # CoLA's
        return TableFile(asked, self.texts, headless=headless)

    def read(self, settings: EvaluateSettings) -> Iterator[Found | Fault]:
        file = self.opened(to_predict(settings))
        labelled = settings.measured and (settings.label is not None or self.is_labelled(file))
        for column in self.answer_columns if labelled else ():
            file.require(column)
        return self.rows(file, labelled=labelled, id_column=self._id_column)

    def is_labelled(self, file: TableFile) -> bool:
        return any(map(file.has, self.answer_columns))

    @property
    def _id_column(self) -> str | None:
        """What names the rows of a file to predict, where it is there."""
        return None if "id" in self.columns else "id"

    def check(self, splits: Splits) -> None:
        if self.regression:
            return
        if self.num_labels < 2:
            raise UserError(
                f"{splits.origin}: all examples have one label, {shortened(self.labels[0])}: bring another "
                "class"
            )
        super().check(splits)

    def strata(self, labels: Sequence[Any]) -> Sequence[Any]:
        return super().strata(labels) if self.regression else labels

    def balance(self, labels: Sequence[Any]) -> str:
        if self.regression:
            return f"labels {min(labels):g} to {max(labels):g}, mean {np.mean(labels):.2f}"
        return super().balance(labels)

    # --- rows and model ------------------------------------------------------------------------------

    def encode(self, examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded:
        """`[CLS] A [SEP]` or `[CLS] A [SEP] B [SEP]`; of a pair, the longer text is cut first."""
        return rows_of_texts(list(zip(*examples.texts, strict=True)), tokenizer, max_length, examples.labels)

    def targets(self, labels: Sequence[Any], batch: Batch) -> Tensor:
        """(B,), class ids or numbers."""
        return torch.tensor(labels, dtype=torch.float32 if self.regression else torch.int64)

    def configure(self, config: NystromformerConfig) -> None:
        super().configure(config)
        if self.regression:
            config.problem_type = "regression"

    # --- predictions ---------------------------------------------------------------------------------

    def predict(self, encoded: Encoded, outputs: Outputs) -> list[float]:
        """The likeliest label id of each row, or the number itself."""
        logits = np.asarray(outputs)
        return (logits[:, 0] if self.regression else logits.argmax(axis=1)).tolist()

    def losses(self, encoded: Encoded, outputs: Outputs) -> Tensor:
        logits = torch.from_numpy(np.asarray(outputs))
        if self.regression:
            return F.mse_loss(logits[:, 0], torch.tensor(encoded.labels), reduction="none")
        targets = torch.tensor(encoded.labels, dtype=torch.int64)
        return F.cross_entropy(logits, targets, reduction="none")

    def draw(
        self, labels: Sequence[Any], predictions: Sequence[Any], folder: Path, title: str
    ) -> dict[str, Any]:
        """The confusion matrix: a row a true class, a column a predicted one."""
        if self.regression:
            return {"confusion": None}
        path = folder / "confusion.png"
        return {"confusion": draw_confusion(self.labels, labels, predictions, path, title)}

    def certainty(self, labels: Sequence[Any], outputs: Outputs) -> tuple[NDArray, NDArray] | None:
        """Of the predicted class."""
        if self.regression:
            return None
        chances = softmax(np.asarray(outputs), axis=1)
        return chances.max(axis=1), chances.argmax(axis=1) == np.asarray(labels)

    @property
    def told(self) -> tuple[str, ...]:
        return ("prediction",) if self.regression else ("prediction", "probability.*")

    def answers(self, found: Answered) -> Iterator[dict[str, Any]]:
        """The number; or the class, and each class's probability."""
        if self.regression:
            return ({"prediction": float(f"{value:.6g}")} for value in found.predictions)
        chances = softmax(np.asarray(found.outputs), axis=1)
        return (
            {"prediction": self.labels[int(number)], "probability": self._rounded(row)}
            for number, row in zip(found.predictions, chances, strict=True)
        )

    def _rounded(self, chances: Iterable[float]) -> dict[str, float]:
        return {name: round(float(chance), 6) for name, chance in zip(self.labels, chances, strict=True)}

    def written(self, found: Answered, *, first: int = 0) -> str:
        """Tab-separated: number, answer, each class's probability, the label if there is one, the texts.

        Quoted where need be, so `evaluate` and pandas read what was read here, whatever stands in it.
        """
        index, prediction = PREDICTIONS
        examples, logits = found.examples, np.asarray(found.outputs)
        columns: dict[str, list[str]] = {index: [str(first + number) for number in range(len(examples))]}
        if self.regression:
            columns[prediction] = [f"{value:.6g}" for value in logits[:, 0]]
        else:
            chances = softmax(logits, axis=1)
            columns[prediction] = [self.labels[number] for number in np.argmax(logits, axis=1)]
            for number, name in enumerate(self.labels):
                columns[f"p({name})"] = [f"{chance:.6f}" for chance in chances[:, number]]
        given = dict(
            zip(self.texts, (list(texts) for texts in zip(*examples.texts, strict=True)), strict=True)
        )
        if examples.labels is not None:
            shown = [repr(label) if self.regression else self.labels[int(label)] for label in examples.labels]
            given = {self.label: shown, **given}
        # The task's columns keep their names, or this could not be read by them again.
        columns = {unlike(name, self.columns): cells for name, cells in columns.items()} | given
        head = [] if first else [list(columns)]
        return written([*head, *zip(*columns.values(), strict=True)])

    def usage(self) -> str:
        return f'''classify = pipeline("{self.pipeline}", model="PATH OF THIS FOLDER")
print(classify({self.asked}))'''

    @property
    def asked(self) -> str:
        """What a pipeline is asked, as Python."""
        return '"a text"' if len(self.texts) == 1 else '{"text": "one", "text_pair": "another"}'

    @classmethod
    def of_own(cls: type[S], settings: TaskSettings, data: TaskDataSettings, label: str, **more: Any) -> S:
        """A task of the user's own; classes are known once its training file is read."""
        texts = (data.text,) if data.text_pair is None else (data.text, data.text_pair)
        return cls(settings.name, settings.name, texts, label, **more)


S = TypeVar("S", bound=SequenceTask)


def custom_task(settings: TaskSettings, data: TaskDataSettings) -> SequenceTask:
    """Classes, or with regression numbers, of the user's own texts."""
    metrics = ("pearson", "spearman") if settings.regression else ("accuracy", "f1_macro", "matthews")
    chosen = "f1_macro" if settings.metric == "f1" else settings.metric
    more = {"metrics": metrics, "score": (chosen,), "regression": settings.regression}
    return SequenceTask.of_own(settings, data, data.label, **more)


def custom_splits(task: SequenceTask, data: TaskDataSettings) -> Splits:
    """Read the files; the classes are the labels of the training file, in order of their names.

    Raises:
        UserError: a file or column is missing, or a row is malformed or has a label not seen in training.
    """
    if not task.regression:
        train = task.opened(to_learn(data, "train"))
        task = with_labels(task, tuple(_values_in(train, task)))
    return own_splits(task, data)


def _values_in(file: TableFile, task: SequenceTask) -> list[str]:
    """The different values of the label column, in order."""

    def values(row: Row, _: int) -> list[str]:
        task._texts_to_learn(row)  # a row without text shows no class
        return task.values_in(row)

    found = dict.fromkeys(value for value in file.usable(file.rows(), values) if isinstance(value, str))
    if len(found) > _MOST_CLASSES:
        raise UserError(
            f"{file.path} has {len(found):,} different labels in {task.label!r}: name the right "
            "column, or write task.regression=true"
        )
    return in_order(found)


def with_labels(task: SequenceTask, values: tuple[str, ...]) -> SequenceTask:
    """The same task with the classes that its data turned out to have."""
    return replace(task, values=values, labels=values)


# --- several labels or numbers of a text of the user's own --------------------------------------------


class OwnTask(SequenceTask):
    """Several labels or numbers of a text."""

    predictions: ClassVar[str] = "predictions.jsonl"
    pictures: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def complaints(cls, settings: FinetuneSettings) -> Iterator[str]:
        task, data = settings.task, settings.data
        yield from super(SequenceTask, cls).complaints(settings)
        if data.source != "auto" or data.root:
            yield f"data.source and data.root are not for task.kind={task.kind}: write data.train=FILE alone"

    def draw(self, *_: Any) -> dict[str, Any]:
        return {}

    def records(self, found: Answered) -> Iterator[Mapping[str, Any]]:
        """Number, answer, what is true if it is known, and the texts."""
        examples = found.examples
        for row, answer in enumerate(self.answers(found)):
            ours = {PREDICTIONS[0]: examples.ids[row], **answer}
            record = {unlike(name, self.columns): value for name, value in ours.items()}
            if examples.labels is not None:
                record |= self.known(examples.labels[row])
            yield record | dict(zip(self.texts, examples.texts[row], strict=True))

    def written(self, found: Answered, *, first: int = 0) -> str:
        return Task.written(self, found, first=first)
