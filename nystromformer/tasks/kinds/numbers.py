"""Several numbers for a text or a pair of texts, each in a column of its own; whole ones may be grades.

The loss is the squared error, the mean over texts and columns. Grades, an ordinal scale, are whole numbers:
they are predicted as numbers, and for `kappa` rounded to the nearest grade of the training examples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import cohen_kappa_score
from torch import Tensor

from nystromformer.errors import UserError
from nystromformer.settings.finetune import EvaluateSettings, FinetuneSettings, TaskDataSettings, TaskSettings
from nystromformer.tasks.kinds.sequence import OwnTask, SequenceTask, custom_splits
from nystromformer.tasks.reading import number_in
from nystromformer.tasks.row_files import Row, Unusable
from nystromformer.tasks.rows import Encoded
from nystromformer.tasks.scores import METRICS
from nystromformer.tasks.task import Answered, Outputs, Splits

OF_NUMBERS = ("pearson", "spearman", "mse", "mae")
OF_GRADES = "kappa"


@dataclass(frozen=True)
class NumbersTask(OwnTask):
    """Labels and predictions of an example are its numbers, in the order of `labels`, the columns."""

    grades: tuple[tuple[float, ...], ...] = ()
    """The grades of each column, ascending; empty where a column holds no whole numbers alone."""

    told: ClassVar[tuple[str, ...]] = ("prediction.*",)
    choosable: ClassVar[tuple[str, ...]] = ("pearson", "spearman", OF_GRADES)

    @property
    def num_labels(self) -> int:
        return len(self.labels)

    @property
    def answer_columns(self) -> tuple[str, ...]:
        return self.labels

    @classmethod
    def complaints(cls, settings: FinetuneSettings) -> Iterator[str]:
        yield from super().complaints(settings)
        if not settings.data.labels:
            yield f"data.labels is empty: with task={settings.task.name} write data.labels=[COLUMN,…]"

    @classmethod
    def load(cls, settings: TaskSettings, data: TaskDataSettings) -> Splits:
        more = {"labels": tuple(data.labels), "metrics": OF_NUMBERS, "score": (settings.metric,)}
        task = cls.of_own(settings, data, data.labels[0], regression=True, **more)
        splits = custom_splits(task, data)
        columns = np.asarray(splits.train.labels, np.float64).reshape(-1, len(data.labels)).T
        if columns.size and (columns == columns.round()).all():
            grades = tuple(tuple(np.unique(column).tolist()) for column in columns)
            task = replace(task, grades=grades, metrics=(*OF_NUMBERS, OF_GRADES))
        elif settings.metric == OF_GRADES:
            raise UserError(
                f"task.metric=kappa is for grades, and {splits.origin} holds numbers that are not whole: "
                "write pearson or spearman"
            )
        splits.task = task
        return splits

    def of_file(self, settings: EvaluateSettings) -> SequenceTask:
        if settings.label is not None:
            raise UserError(
                f"label={settings.label}: {self.title} has {len(self.labels)} columns of numbers, "
                f"{', '.join(self.labels)}: name them so in the file, and write null"
            )
        return super().of_file(settings)

    def counts(self, labels: Sequence[Any] | None) -> dict[str, int]:
        return {}

    def _label(self, row: Row, ids: dict[str, int]) -> list[float]:
        values = [(column, row.label(column)) for column in self.labels]
        for column, value in values:
            if not value:
                raise Unusable(f"has no label in {column!r}")
        return [number_in(value, column) for column, value in values]

    def check(self, splits: Splits) -> None:
        """Numbers may be anything."""

    def balance(self, labels: Sequence[Any]) -> str:
        columns = np.asarray(labels).T
        told = [
            f"{name} {column.min():g} to {column.max():g}, mean {column.mean():.2f}"
            for name, column in zip(self.labels, columns, strict=True)
        ]
        return "; ".join(told)

    def predict(self, encoded: Encoded, outputs: Outputs) -> list[Any]:
        return np.asarray(outputs, np.float64).tolist()

    def losses(self, encoded: Encoded, outputs: Outputs) -> Tensor:
        numbers = torch.from_numpy(np.asarray(outputs))
        return (numbers - torch.tensor(encoded.labels)).square().mean(dim=1)

    def figures(self, labels: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
        """Each metric as the mean over the columns, and with several columns also of each by itself."""
        truth, found = np.asarray(labels, np.float64).T, np.asarray(predictions, np.float64).T
        of_columns = {
            name: [self._figure(name, number, truth[number], found[number]) for number in range(len(truth))]
            for name in self.metrics
        }
        figures = self.with_score({name: float(np.mean(values)) for name, values in of_columns.items()})
        if len(self.labels) > 1:
            for name, values in of_columns.items():
                figures |= {
                    f"{name}_{column}": value for column, value in zip(self.labels, values, strict=True)
                }
        return figures

    def _figure(self, metric: str, column: int, truth: NDArray[Any], found: NDArray[Any]) -> float:
        if metric != OF_GRADES:
            return METRICS[metric](truth, found)
        scale = np.asarray(self.grades[column])
        nearest = scale[np.abs(found[:, None] - scale).argmin(axis=1)]
        if len({*truth, *nearest}) == 1:
            return 0.0  # nothing to agree about, which the definition leaves open
        known = np.unique([*scale, *truth]).astype(int)
        return float(
            cohen_kappa_score(truth.astype(int), nearest.astype(int), labels=known, weights="quadratic")
        )

    def answers(self, found: Answered) -> Iterator[dict[str, Any]]:
        """What is predicted for each column."""
        for numbers in found.predictions:
            named = zip(self.labels, numbers, strict=True)
            yield {"prediction": {name: float(f"{value:.6g}") for name, value in named}}

    def known(self, label: Any) -> dict[str, Any]:
        return dict(zip(self.labels, label, strict=True))

    def usage(self) -> str:
        return f"""predict = pipeline(
    "{self.pipeline}", model="PATH OF THIS FOLDER", top_k=None, function_to_apply="none"
)
print(predict([{self.asked}]))  # the number of each column as its score"""
