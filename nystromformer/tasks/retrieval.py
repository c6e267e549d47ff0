"""`evaluate` on a folder: documents ranked by a model's vectors or scores, beside BM25 and exact attention.

documents → blocks of vectors → the nearest of each query → (reranked) → judgements → table, files
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nystromformer.errors import UserError
from nystromformer.files import write_atomically
from nystromformer.intervals import mean_interval
from nystromformer.model.source import open_source
from nystromformer.settings.finetune import EvaluateSettings, SwapSettings
from nystromformer.settings.retrieval import EvaluateCommandSettings, RetrievalSettings
from nystromformer.tables import table
from nystromformer.tasks.collection import Collection
from nystromformer.tasks.embedding import Embedder, swap
from nystromformer.tasks.export import open_model, taught, to_device
from nystromformer.tasks.kinds.rerank import RerankTask
from nystromformer.tasks.ranking import (
    METRICS,
    Bm25,
    Figures,
    Nearest,
    Run,
    as_run,
    check_retrieval_packages,
    judged_figures,
    queries_with_relevant,
    top,
    written_run,
)
from nystromformer.tasks.task import Examples, Texts
from nystromformer.tasks.training import outputs_of
from nystromformer.training.display import ProgressDisplay

_AT_ONCE = 2048
"""Documents of a block."""


class Search:
    """The judged queries of a collection, and rankings of its documents for them.

    Raises:
        UserError: something is missing, or the parts do not fit together.
    """

    def __init__(self, folder: str, settings: RetrievalSettings, *, setting: str = "file") -> None:
        check_retrieval_packages(f"{setting}={folder}")
        self._settings = settings
        self.collection = Collection(Path(folder).expanduser(), setting, settings.one_is_best)
        queries = self.collection.queries()
        self.judgements = self.collection.judgements(settings.split)
        self.ids, itself = self._names(queries)
        self.collection.check(self.judgements, queries, set(self.ids), settings.split)
        self.queries = {name: queries[name] for name in queries_with_relevant(self.judgements)}
        """Those that have a relevant document."""
        self._left_out = {
            name: {one for one, grade in self.judgements[name].items() if grade < 0}
            if settings.without_below_zero
            else set()
            for name in self.queries
        }
        for name in itself & self.queries.keys():
            self._left_out[name].add(name)

    def _names(self, queries: Mapping[str, str]) -> tuple[list[str], set[str]]:
        """The id of every document, and those of queries that are documents themselves, as ArguAna's are."""
        ids, itself = [], set()
        for block in self.collection.documents(_AT_ONCE):
            ids += block.ids
            itself |= {
                name
                for name, text in zip(*block, strict=True)
                if name in queries and text.endswith(queries[name])
            }
        return ids, itself

    @property
    def _depth(self) -> int:
        return self._settings.depth + max(map(len, self._left_out.values()))

    def by_bm25(self) -> Run:
        return self._kept(Bm25(self.collection.documents(_AT_ONCE)).rank(self.queries, self._depth))

    def by_vectors(self, embedder: Embedder, label: str, batch_size: int = 64, tokens: int = 16384) -> Run:
        """By cosine; every document is compared with every query."""
        nearest = Nearest(embedder.encode(self.queries.values(), batch_size), self._depth)
        done, began = 0, time.monotonic()
        with ProgressDisplay(len(self.ids), 0, shown=True, unit="document") as display:
            display.say(label)
            for block in self.collection.documents(_AT_ONCE):
                nearest.add(embedder.encode(block.texts, batch_size, tokens_per_batch=tokens))
                done += len(block.ids)
                speed = done / (time.monotonic() - began)
                display.reached(done, f"{speed:,.1f} documents/s", (len(self.ids) - done) / speed)
        return self._kept(as_run(list(self.queries), nearest.scores, nearest.numbers, self.ids))

    def by_scores(self, reranker: Reranker, run: Run) -> Run:
        """A ranking whose first documents are ordered anew."""
        depth = self._settings.rerank_depth
        first = {name for found in top(run, depth).values() for name in found}
        return reranker.reranked(run, self.queries, self.collection.texts_of(first), depth)

    def _kept(self, run: Run) -> Run:
        wanted = {
            query: {name: score for name, score in found.items() if name not in self._left_out[query]}
            for query, found in run.items()
        }
        return top(wanted, self._settings.depth)


def evaluate_collection(settings: EvaluateCommandSettings) -> None:
    """Rank a folder's documents in every way that is asked for; write the rankings and print their figures.

    Raises:
        UserError: the folder or a model is not usable, or `folder` cannot be written.
    """
    if settings.model != SwapSettings() and is_reranker(str(settings.checkpoint)):
        raise UserError("model.* is for checkpoints that make vectors, and this one reranks: leave it empty")
    search = Search(str(settings.file), settings.retrieval)
    rows = _rankings(search, settings)
    figures = {title: judged_figures(run, search.judgements) for title, run in rows.items()}
    lines = figures_table(figures)
    told = f"{len(search.queries):,} queries, {len(search.ids):,} documents"
    files = {title: f"ranking-{number}.trec" for number, title in enumerate(rows)}
    result = {
        "checkpoint": settings.checkpoint,
        "file": settings.file,
        "retrieval": asdict(settings.retrieval),
        "queries": len(search.queries),
        "documents": len(search.ids),
        "figures": {title: figures_told(found) for title, found in figures.items()},
        "rankings": files,
    }
    folder = Path(settings.folder).expanduser()
    page = [f"# {settings.file}, {settings.retrieval.split}", "", f"{told}.", "", *lines, ""]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for title, name in files.items():
            write_atomically(folder / name, written_run(rows[title], title))
        write_atomically(folder / "result.md", "\n".join(page))
        write_atomically(folder / "result.json", json.dumps(result, indent=2) + "\n")
    except OSError as error:
        raise UserError(
            f"folder={settings.folder} cannot be written ({error.strerror or error}): write another"
        ) from None
    print("\n".join([f"{settings.file}: {told}", *lines]))
    print(folder / "result.md")


def _rankings(search: Search, settings: EvaluateCommandSettings) -> dict[str, Run]:
    """Each row's title and ranking, the checkpoint's first."""
    asked = settings.retrieval
    given = {str(settings.checkpoint): "checkpoint", **dict.fromkeys(asked.beside, "retrieval.beside")}
    attentions = {path: open_source(path, setting=name).config.attention for path, name in given.items()}
    again = Reranker(asked.rerank, settings, "retrieval.rerank") if asked.rerank else None
    lexical = search.by_bm25() if asked.bm25 or any(map(is_reranker, given)) else {}
    found: dict[str, Run] = {}
    to_rerank: dict[str, Run] = {}
    for path, setting in given.items():
        changes = swap(settings.model) if setting == "checkpoint" and not is_reranker(path) else {}
        attention = changes.get("attention") or attentions[path]
        variants = {path: changes}
        if asked.exact and attention != "softmax":
            variants[f"{path}, exact attention"] = {**changes, "attention": "softmax"}
        for title, change in variants.items():
            if is_reranker(path):
                found[title] = search.by_scores(Reranker(path, settings, setting, **change), lexical)
                continue
            embedder = Embedder.load(path, precision=settings.precision, **change)
            run = search.by_vectors(embedder, title, settings.batch_size, settings.tokens_per_batch)
            found[title] = to_rerank[title] = run
    if asked.bm25:
        found["BM25"] = to_rerank["BM25"] = lexical
    if again:
        found |= {f"{title}, reranked": search.by_scores(again, run) for title, run in to_rerank.items()}
    return found


# --- figures ------------------------------------------------------------------------------------------


def figures_told(figures: Figures) -> dict[str, Any]:
    """The mean of each figure over the queries, and its interval."""
    return {
        name: {"mean": float(values.mean()), "interval": mean_interval(values)}
        for name, values in figures.items()
    }


def figures_table(figures: Mapping[str, Figures]) -> list[str]:
    """A row each, with 95 % intervals over the queries; and how far nDCG is from the first row's."""
    main = next(iter(METRICS))
    (first, own), *_ = figures.items()
    rows = []
    for title, found in figures.items():
        low, high = mean_interval(found[main])
        cells = [title, f"{found[main].mean():.4f} [{low:.3f}, {high:.3f}]"]
        cells += [f"{found[name].mean():.4f}" for name in METRICS if name != main]
        gained = found[main] - own[main]
        low, high = mean_interval(gained)
        cells.append("" if title == first else f"{gained.mean():+.4f} [{low:+.3f}, {high:+.3f}]")
        rows.append(cells)
    return table(["", *METRICS, f"{main} against the first"], rows)


# --- rankings by a model of task=rerank ---------------------------------------------------------------


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
        self.model, self._tokenizer = open_model(path, self._task, setting, **changes)
        self._settings = settings
        self._autocast = to_device(self.model, settings.precision)

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
