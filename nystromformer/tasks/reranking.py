"""A model of task=rerank that orders the first documents of rankings anew."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nystromformer.errors import UserError
from nystromformer.model.layouts import load_model
from nystromformer.model.source import open_tokenizer
from nystromformer.settings import TrainingSettings
from nystromformer.settings.finetune import EvaluateSettings
from nystromformer.tasks.export import taught
from nystromformer.tasks.kinds.rerank import RerankTask
from nystromformer.tasks.ranking import Run, top
from nystromformer.tasks.task import Examples, Texts
from nystromformer.tasks.training import outputs_of
from nystromformer.training import devices


class Reranker:
    """A model that scores pairs, on its device.

    Args:
        folder: what `finetune task=rerank` wrote.
        settings: batches and precision.
        setting: what the folder was given by, for messages.
        changes: of the model's configuration, such as `attention="softmax"`.

    Raises:
        UserError: it is no such model.
    """

    def __init__(self, folder: str, settings: EvaluateSettings, setting: str, **changes: Any) -> None:
        path = Path(folder).expanduser()
        if not is_reranker(folder):
            raise UserError(f"{setting}={folder} does not rerank: write a model of task=rerank")
        self._task, self._max_length = taught(path)
        wrong, fix = f"{setting}={folder}", ": train it again"
        model, _ = load_model(self._task.head, str(path), wrong=wrong, fix=fix, **changes)
        recipe = TrainingSettings(precision=settings.precision)
        device = devices.open_accelerator(recipe).device
        self.model = model.eval().to(device)
        self._tokenizer = open_tokenizer(None, str(path))
        self._settings = settings
        self._autocast = devices.autocast(devices.precision(recipe, device), device)

    def scores(self, query: str, documents: list[str]) -> list[float]:
        """How well each document answers a query, the higher the better."""
        lists: list[Texts] = [(query, document) for document in documents]
        part = self._task.encode(Examples(lists, None, []), self._tokenizer, self._max_length)
        outputs = outputs_of(
            self._task, self.model, part, self._settings.batch_size, int(self._tokenizer.pad_token_id),
            self._autocast, tokens=self._settings.tokens_per_batch,
        )  # fmt: skip
        return [float(row[0]) for row in outputs]

    def reranked(self, run: Run, queries: Mapping[str, str], texts: Mapping[str, str], depth: int) -> Run:
        """The first `depth` documents of each query by their scores, then the others as they were."""
        found: Run = {}
        for query, documents in top(run).items():
            first = list(documents)[:depth]
            scores = self.scores(queries[query], [texts[name] for name in first]) if first else []
            found[query] = dict(zip(first, scores, strict=True))
            least = min(scores, default=0.0)
            rest = list(documents)[depth:]
            found[query] |= {name: least - number for number, name in enumerate(rest, start=1)}
        return found


def is_reranker(folder: str) -> bool:
    """Whether a checkpoint is a model of task=rerank; anything else may make vectors."""
    path = Path(folder).expanduser()
    return (path / "task.json").is_file() and isinstance(taught(path)[0], RerankTask)
