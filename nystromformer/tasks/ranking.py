"""Rankings of documents for queries: by BM25, by vectors, and what judgements say of them.

Shapes: Q queries, B documents of a block, k documents kept, d width.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from nystromformer.errors import check_installed
from nystromformer.tasks.collection import Block, Judgements

Run = dict[str, dict[str, float]]
"""The scores of the documents that were found for each query."""
Figures = dict[str, NDArray[np.float64]]
"""Each of METRICS, of every query in order."""

METRICS = {
    "ndcg@10": "ndcg_cut_10",
    "mrr@10": "recip_rank",
    "recall@10": "recall_10",
    "recall@100": "recall_100",
}
"""Figures of a ranking, and trec_eval's names of them; its reciprocal rank has no cut of its own."""
_LEAST_AT_10 = 1 / 10
_MOST_SCORES = 2**24
"""Scores that are in memory at once: 64 MiB of float32."""


def check_retrieval_packages(setting: str) -> None:
    """Raise UserError where what measures and BM25 need is not installed."""
    needed = {"pytrec_eval": "pytrec-eval-terrier", "bm25s": "bm25s"}
    missing = [name for module, name in needed.items() if importlib.util.find_spec(module) is None]
    check_installed(missing, setting, "retrieval")


def judged_figures(run: Run, judgements: Judgements) -> Figures:
    """trec_eval's figures of every query that has a relevant document; 0 of one with nothing found.

    The gain is the grade itself, the discount log2(rank + 1); below grade 1 a document is not relevant, as is
    one that nobody judged. Equal scores are in the descending order of ids.
    """
    from pytrec_eval import RelevanceEvaluator

    asked = queries_with_relevant(judgements)
    evaluator = RelevanceEvaluator({name: judgements[name] for name in asked}, {*METRICS.values()})
    found = evaluator.evaluate(
        {name: {str(k): float(v) for k, v in run.get(name, {}).items()} for name in asked}
    )
    figures = {
        metric: np.array([found.get(name, {}).get(theirs, 0.0) for name in asked])
        for metric, theirs in METRICS.items()
    }
    figures["mrr@10"][figures["mrr@10"] < _LEAST_AT_10] = 0.0
    return figures


def queries_with_relevant(judgements: Judgements) -> list[str]:
    """The queries that figures are of."""
    return [name for name, grades in judgements.items() if max(grades.values(), default=0) > 0]


class Bm25:
    """BM25 in Lucene's form by bm25s: k1 1.5, b 0.75, English stop words left out, words as they are."""

    def __init__(self, documents: Iterable[Block]) -> None:
        import bm25s

        texts: list[str] = []
        self.ids: list[str] = []
        for block in documents:
            self.ids += block.ids
            texts += block.texts
        self._index = bm25s.BM25()
        self._index.index(bm25s.tokenize(texts, stopwords="en", show_progress=False), show_progress=False)

    def rank(self, queries: Mapping[str, str], depth: int) -> Run:
        """The documents that share a word with each query, at most `depth` of them."""
        import bm25s

        words = bm25s.tokenize(list(queries.values()), stopwords="en", return_ids=False, show_progress=False)
        depth = min(depth, len(self.ids))
        numbers, scores = self._index.retrieve(words, k=depth, show_progress=False, n_threads=1)
        return as_run(list(queries), scores, numbers, self.ids, above=0.0)


class Nearest:
    """The documents of highest cosine to each query, from blocks of any sizes: all are compared.

    Args:
        queries: vectors (Q, d), none of which need have length 1.
        depth: k.
    """

    def __init__(self, queries: NDArray[np.float32], depth: int) -> None:
        self._queries = unit_vectors(queries)
        self._depth = depth
        self.scores = np.empty((len(queries), 0), np.float32)
        """(Q, at most k), descending."""
        self.numbers = np.empty((len(queries), 0), np.int64)
        """Of the documents, counted from 0 over all blocks; of equal scores the first ones."""
        self._seen = 0

    def add(self, documents: NDArray[np.float32]) -> None:
        """Compare a block, vectors (B, d)."""
        documents = unit_vectors(documents)
        at_once = max(_MOST_SCORES // max(len(documents), 1), 1)
        parts = [
            self._merged(slice(start, start + at_once), documents)
            for start in range(0, len(self._queries), at_once)
        ]
        if parts:
            self.scores, self.numbers = (np.concatenate(column) for column in zip(*parts, strict=True))
        self._seen += len(documents)

    def _merged(self, some: slice, documents: NDArray[np.float32]) -> tuple[NDArray, NDArray]:
        of_block = self._queries[some] @ documents.T
        scores = np.concatenate([self.scores[some], of_block], axis=1)
        numbers = np.broadcast_to(np.arange(self._seen, self._seen + len(documents)), of_block.shape)
        numbers = np.concatenate([self.numbers[some], numbers], axis=1)
        kept = min(self._depth, scores.shape[1])
        # The k-th highest score of each, for which sorting all of them is not needed.
        least = np.partition(scores, scores.shape[1] - kept, axis=1)[:, scores.shape[1] - kept]
        chosen = np.empty((len(scores), kept), np.int64)
        for row, (of_query, low) in enumerate(zip(scores, least, strict=True)):
            high = np.flatnonzero(of_query >= low)
            chosen[row] = high[np.argsort(-of_query[high], kind="stable")[:kept]]
        return np.take_along_axis(scores, chosen, 1), np.take_along_axis(numbers, chosen, 1)


def unit_vectors(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The rows with length 1; a row of zeros stays one, and so is like no other."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True).astype(np.float32)
    return vectors / np.maximum(lengths, np.finfo(np.float32).tiny)


def as_run(
    queries: Sequence[str],
    scores: NDArray,
    numbers: NDArray,
    ids: Sequence[str],
    *,
    above: float | None = None,
) -> Run:
    """Scores and numbers of documents, both (Q, k), by name; those of at most `above` left out."""
    return {
        query: {
            ids[int(number)]: float(score)
            for score, number in zip(of_query, found, strict=True)
            if above is None or score > above
        }
        for query, of_query, found in zip(queries, scores, numbers, strict=True)
    }


def written_run(run: Run, name: str) -> str:
    """The text of a file in TREC's form: query, Q0, document, rank, score, the run's name.

    White space within a name, which that form has no place for, becomes `_`.
    """

    def whole(text: str) -> str:
        return "_".join(text.split())

    return "".join(
        f"{whole(query)} Q0 {whole(document)} {rank} {score:.8g} {whole(name)}\n"
        for query, found in run.items()
        for rank, (document, score) in enumerate(_in_order(found), start=1)
    )


def top(run: Run, depth: int | None = None) -> Run:
    """The first `depth` documents of each query, or all of them, as trec_eval orders them."""
    return {query: dict(_in_order(found)[:depth]) for query, found in run.items()}


def _in_order(found: Mapping[str, float]) -> list[tuple[str, float]]:
    by_id = sorted(found.items(), reverse=True)
    return sorted(by_id, key=lambda item: -item[1])
