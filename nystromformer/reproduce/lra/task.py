"""A task of the arena as token ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nystromformer.tasks.task import Encoded


@dataclass(frozen=True)
class LraTask:
    """Everything a model is trained and measured on."""

    name: str
    train: Encoded
    validation: Encoded
    """Chooses the step that is measured on the test examples."""
    test: Encoded
    vocabulary: int
    """Tokens and padding."""
    classes: int
    longest: int
    """Tokens that the position table has to hold."""
    origin: str
    """Where the examples are from, for people."""

    @property
    def mask_id(self) -> int:
        return self.vocabulary

    @property
    def texts(self) -> int:
        """How many an example has: two documents for Retrieval."""
        return self.train.texts_of(0)

    @property
    def chance(self) -> float:
        """Accuracy of the answer that is always the commonest class of the test examples."""
        return Counter(self.test.labels).most_common(1)[0][1] / len(self.test)

    @property
    def balance(self) -> list[float]:
        """Share of each class among the test examples."""
        counts = Counter(self.test.labels)
        return [counts[label] / len(self.test) for label in range(self.classes)]


def encoded(examples: tuple[Sequence[list], Sequence[float]]) -> Encoded:
    """Rows of token ids, or of lists of them, and their classes."""
    rows, labels = examples
    lengths = np.array([max(map(len, row)) if isinstance(row[0], list) else len(row) for row in rows])
    return Encoded(list(rows), None, [float(label) for label in labels], lengths, lengths)
