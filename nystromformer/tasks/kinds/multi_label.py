"""Any number of labels for a text or a pair of texts: each label by itself, present or not.

A label is present where its probability reaches its threshold. Thresholds are chosen on the held-out
examples once a seed is trained, and stored with the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.metrics import average_precision_score, f1_score
from torch import Tensor

from nystromformer.data.layout import Batch
from nystromformer.errors import UserError
from nystromformer.model import NystromformerConfig
from nystromformer.settings.finetune import SEPARATORS, FinetuneSettings, TaskDataSettings, TaskSettings
from nystromformer.tasks.kinds.sequence import OwnTask, custom_splits
from nystromformer.tasks.reading import id_of
from nystromformer.tasks.row_files import Row, Unusable
from nystromformer.tasks.rows import Encoded
from nystromformer.tasks.task import Answered, Outputs, Splits, Task

METRICS = ("average_precision", "f1", "f1_macro")
_UNDECIDED = 0.5
"""The threshold of a label before one is chosen, and of one that no held-out example has."""


@dataclass(frozen=True)
class MultiLabelTask(OwnTask):
    """An example's labels are the ids of those present, in order; its prediction is every probability."""

    separator: str = ","
    """What stands between labels in the cell of a table."""
    thresholds: tuple[float, ...] = ()
    """Probability from which each label is present, by label id; empty until they are chosen."""

    choosable: ClassVar[tuple[str, ...]] = METRICS

    @classmethod
    def complaints(cls, settings: FinetuneSettings) -> Iterator[str]:
        if settings.task.regression:
            yield "task.regression=true does not fit task.kind=multi_label: write false"
        yield from super().complaints(settings)

    @classmethod
    def load(cls, settings: TaskSettings, data: TaskDataSettings) -> Splits:
        between = SEPARATORS[data.label_separator]
        more = {"metrics": METRICS, "score": (settings.metric,), "separator": between}
        return custom_splits(cls.of_own(settings, data, data.label, **more), data)

    def values_in(self, row: Row) -> list[str]:
        """The labels of a row, each once; an empty cell or list says that none is present."""
        cell = row.cells.get(self.label)
        if cell is None:
            raise Unusable(f"has no {self.label!r}: an empty list or cell says that no label is present")
        parts = (
            cell
            if isinstance(cell, list)
            else cell.split(self.separator)
            if isinstance(cell, str)
            else [cell]
        )
        if any(isinstance(part, list) for part in parts):
            raise Unusable(f"is malformed ({self.label!r} is a list of lists, where labels should be)")
        values = [replace(row, cells={self.label: part}).label(self.label) for part in parts]
        if isinstance(cell, list) and not all(values):
            raise Unusable(f"is malformed (an empty label in {self.label!r})")
        return list(dict.fromkeys(value for value in values if value))

    def _label(self, row: Row, ids: dict[str, int]) -> list[int]:
        return sorted({id_of(value, ids) for value in self.values_in(row)})

    def check(self, splits: Splits) -> None:
        if not self.labels:
            raise UserError(f"{splits.origin}: no example has a label in {self.label!r}: name another column")
        Task.check(self, splits)

    def strata(self, labels: Sequence[Any]) -> Sequence[Any]:
        """The rarest label of each example, of those that another one has too: both parts are to have it."""
        counts = Counter(label for present in labels for label in present)
        several = [[label for label in present if counts[label] > 1] for present in labels]
        return [min(present, key=lambda label: (counts[label], label), default=-1) for present in several]

    def balance(self, labels: Sequence[Any]) -> str:
        shares = [f"{name} {count / len(labels):.1%}" for name, count in self.counts(labels).items()]
        more = f" and {len(shares) - 6} more labels" if len(shares) > 6 else ""
        mean = sum(map(len, labels)) / len(labels)
        return f"{mean:.2f} labels each: {', '.join(shares[:6])}{more}"

    def targets(self, labels: Sequence[Any], batch: Batch) -> Tensor:
        """(B, C), 1 for what is present."""
        return torch.from_numpy(self._present(labels)).float()

    def configure(self, config: NystromformerConfig) -> None:
        super().configure(config)
        config.problem_type = "multi_label_classification"

    def predict(self, encoded: Encoded, outputs: Outputs) -> list[Any]:
        """The probability of each label, (C,) for each row."""
        return list(expit(np.asarray(outputs, np.float64)))

    def losses(self, encoded: Encoded, outputs: Outputs) -> Tensor:
        logits = torch.from_numpy(np.asarray(outputs))
        targets = self.targets(encoded.labels or [], {})
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=1)

    def figures(self, labels: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
        """Micro and macro F1 of what reaches the thresholds, and the mean average precision of the labels.

        The means over the labels leave out those that no example has: nothing can be right about them.
        """
        truth, chances = self._present(labels), np.asarray(predictions)
        found = chances >= self._thresholds
        known = truth.any(axis=0)
        figures = {
            "average_precision": 0.0,
            "f1": float(f1_score(truth, found, average="micro", zero_division=0)),
            "f1_macro": 0.0,
        }
        if known.any():
            truth, chances, found = truth[:, known], chances[:, known], found[:, known]
            figures["average_precision"] = float(average_precision_score(truth, chances, average="macro"))
            figures["f1_macro"] = float(f1_score(truth, found, average="macro", zero_division=0))
        return self.with_score(figures)

    def fitted(self, encoded: Encoded, labels: Sequence[Any], outputs: Outputs) -> MultiLabelTask:
        """With the thresholds that give each label its highest F1 on these examples."""
        truth, chances = self._present(labels), expit(np.asarray(outputs, np.float64))
        columns = zip(truth.T, chances.T, strict=True)
        return replace(self, thresholds=tuple(best_threshold(*column) for column in columns))

    def certainty(self, labels: Sequence[Any], outputs: Outputs) -> tuple[NDArray, NDArray] | None:
        """Of each label of each example."""
        return expit(np.asarray(outputs, np.float64)).ravel(), self._present(labels).ravel()

    def answers(self, found: Answered) -> Iterator[dict[str, Any]]:
        """The labels present, and every label's probability."""
        for chances in found.predictions:
            present = self._named(np.flatnonzero(chances >= self._thresholds).tolist())
            yield {"prediction": present, "probability": self._rounded(chances)}

    def known(self, label: Any) -> dict[str, Any]:
        return {self.label: self._named(label)}

    def usage(self) -> str:
        chosen = dict(zip(self.labels, self._thresholds.round(4).tolist(), strict=True))
        return f"""classify = pipeline("{self.pipeline}", model="PATH OF THIS FOLDER", top_k=None)
thresholds = {chosen}  # task.json has them to the last digit
(labels,) = classify([{self.asked}])
print([label for label in labels if label["score"] >= thresholds[label["label"]]])"""

    @property
    def _thresholds(self) -> NDArray[np.float64]:
        return np.asarray(self.thresholds or [_UNDECIDED] * self.num_labels)

    def _named(self, ids: Sequence[int]) -> list[str]:
        return [self.labels[number] for number in ids]

    def _present(self, labels: Sequence[Any]) -> NDArray[np.bool_]:
        """(examples, C)."""
        present = np.zeros((len(labels), self.num_labels), bool)
        for row, ids in enumerate(labels):
            present[row, ids] = True
        return present


def best_threshold(truth: NDArray[np.bool_], chances: NDArray[np.float64]) -> float:
    """The threshold with the highest F1, midway between two probabilities; the highest of equally good ones.

    Args:
        truth, chances: (examples,), whether the label is present, and its probability.
    """
    if not truth.any():
        return _UNDECIDED
    order = np.argsort(-chances, kind="stable")
    ranked = chances[order]
    right = np.cumsum(truth[order])
    f1 = 2 * right / (np.arange(1, len(ranked) + 1) + truth.sum())
    f1[:-1][ranked[:-1] == ranked[1:]] = -1.0  # no threshold parts equal probabilities
    below = np.append(ranked[1:], 0.0)
    best = int(np.argmax(f1))
    return float((ranked[best] + below[best]) / 2)
