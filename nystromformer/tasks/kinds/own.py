"""What kinds have in common that predict several things of a text of the user's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from nystromformer.settings.finetune import FinetuneSettings
from nystromformer.tasks.kinds.sequence import SequenceTask
from nystromformer.tasks.reading import unlike
from nystromformer.tasks.table_files import PREDICTIONS
from nystromformer.tasks.task import Answered, Task


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
        if settings.submission:
            yield f"submission=true is for GLUE, not for task={task.name}: write false"

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
