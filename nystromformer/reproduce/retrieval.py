"""Search by vectors: exact attention, Nyström, and Nyström with exact neighbours; before training and after.

Trained is one recipe for all: each document's title is told from the others' by its text, the title left out.
Neither queries nor judgements are read for that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nystromformer.errors import UserError
from nystromformer.intervals import mean_interval
from nystromformer.reproduce.result import trained_bert
from nystromformer.reproduce.runs import finetune_run, finetuned
from nystromformer.results import Result
from nystromformer.settings.reproduce import ReproduceSettings
from nystromformer.settings.retrieval import RetrievalSettings
from nystromformer.settings.scale import RetrievalScale
from nystromformer.tables import Block, table
from nystromformer.tasks.embedding import Embedder
from nystromformer.tasks.jobs import run_folder
from nystromformer.tasks.ranking import METRICS, Figures, Run, judged_figures
from nystromformer.tasks.retrieval import Search, figures_told

_EXACT, _NYSTROM, _NEAR = "exact", "Nyström", "Nyström and neighbours"
_MAIN = "ndcg@10"
_DEPTH = 200
"""Documents kept, so that a hundred are left when some are left out."""


def retrieval(settings: ReproduceSettings) -> Result:
    """Rank the documents by BM25 and by every model, untrained and trained.

    Raises:
        UserError: there is no collection, or a model cannot be trained.
    """
    if not settings.collection:
        raise UserError("collection is empty: with table=retrieval write collection=FOLDER, in BEIR's layout")
    scale = settings.scale.retrieval
    asked = RetrievalSettings(one_is_best=scale.one_is_best, depth=_DEPTH)
    search = Search(str(settings.collection), asked, setting="collection")
    figures = {"BM25": _figures(search, search.by_bm25())}

    def measure(title: str, embedder: Embedder) -> None:
        figures[title] = _figures(search, search.by_vectors(embedder, title))
        print(f"  {title}: {_MAIN} {figures[title]['all'][_MAIN].mean():.4f}", flush=True)

    bert = trained_bert(settings)
    how: dict[str, Any] = {"precision": scale.precision}
    for name, changes in _variants(scale).items():
        measure(f"{name}, untrained", Embedder.load(bert, max_length=scale.length, **how, **changes))
    for name, changes in _variants(scale).items():
        measure(f"{name}, trained", Embedder.load(_trained(settings, search, name, changes), **how))
    means = {
        title: {kind: figures_told(one) for kind, one in found.items()} for title, found in figures.items()
    }
    differences = {
        title: _difference(figures, title)
        for title in figures
        if title != "BM25" and not title.startswith(f"{_EXACT},")
    }
    ours = [f"{name}, {state}" for state in ("untrained", "trained") for name in (_NYSTROM, _NEAR)]
    lost = "; ".join(f"{title} {differences[title]['mean']:+.4f}" for title in ours)
    return Result(
        title="Search by vectors, Nyström attention beside exact attention and BM25",
        measured={"figures": means, "against_exact": differences},
        blocks=_page(search, scale, means, differences),
        headline=f"{_MAIN} of BM25 {_mean(means, 'BM25')}, of exact attention "
        f"{_mean(means, f'{_EXACT}, untrained')}, trained {_mean(means, f'{_EXACT}, trained')}. "
        f"Against exact attention: {lost}",
    )


def _variants(scale: RetrievalScale) -> dict[str, dict[str, Any]]:
    """The configuration of each model."""
    nystrom = {"attention": "nystrom", "num_landmarks": scale.num_landmarks}
    return {
        _EXACT: {"attention": "softmax"},
        _NYSTROM: nystrom,
        _NEAR: {**nystrom, "neighbours": scale.neighbours},
    }


def _trained(settings: ReproduceSettings, search: Search, name: str, changes: dict[str, Any]) -> Path:
    """The folder of the model that is fine-tuned on titles and texts."""
    scale = settings.scale.retrieval
    documents, _, _ = search.collection.files("test")
    words = [
        "task=embed", f"data.train={documents}", "data.text=title", "data.text_pair=text",
        "data.remove_repeated=true", "data.malformed_rows=skip", f"model.max_length={scale.length}",
        *scale.words, *(f"model.{key}={value}" for key, value in changes.items()),
    ]  # fmt: skip
    if name != _EXACT:
        words.append("model.convolution=fitted")
    name, bert = f"retrieval_{name.lower().replace('ö', 'o').replace(' ', '_')}", trained_bert(settings)
    finetuned(settings, words, bert, name=name)
    run = finetune_run(settings, words, bert, name=name)
    return run_folder(run) / run.task.name / "model"


def _figures(search: Search, run: Run) -> dict[str, Figures]:
    """Of all documents; and of those that are not judged below 0."""
    others = {
        query: {name: score for name, score in found.items() if search.judgements[query].get(name, 0) >= 0}
        for query, found in run.items()
    }
    return {
        "all": judged_figures(run, search.judgements),
        "others": judged_figures(others, search.judgements),
    }


def _difference(figures: dict[str, dict[str, Figures]], title: str) -> dict[str, Any]:
    """How far a row's figure is above that of exact attention in the same state."""
    name, _, state = title.rpartition(", ")
    gained = figures[title]["all"][_MAIN] - figures[f"{_EXACT}, {state}"]["all"][_MAIN]
    return {"mean": float(np.mean(gained)), "interval": mean_interval(gained)}


def _mean(means: dict[str, Any], title: str) -> str:
    return f"{means[title]['all'][_MAIN]['mean']:.4f}"


def _page(
    search: Search, scale: RetrievalScale, means: dict[str, Any], differences: dict[str, Any]
) -> list[Block]:
    def signed(title: str) -> str:
        if title not in differences:
            return ""
        low, high = differences[title]["interval"]
        return f"{differences[title]['mean']:+.4f} [{low:+.3f}, {high:+.3f}]"

    rows = []
    for title, found in means.items():
        low, high = found["all"][_MAIN]["interval"]
        rows.append(
            [
                title,
                f"{found['all'][_MAIN]['mean']:.4f} [{low:.3f}, {high:.3f}]",
                signed(title),
                *(f"{found['all'][name]['mean']:.4f}" for name in METRICS if name != _MAIN),
                f"{found['others'][_MAIN]['mean']:.4f}",
            ]
        )
    judged_below = sum(grade < 0 for grades in search.judgements.values() for grade in grades.values())
    return [
        f"{len(search.ids):,} documents of at most {scale.length} tokens, {len(search.queries):,} queries; "
        f"{scale.num_landmarks} landmarks, {scale.neighbours} neighbours. In brackets 95 % intervals over "
        "the queries, for differences of the same queries. Untrained is the trained BERT of the samples (or "
        "`checkpoint=`), which makes vectors already, with its attention exchanged. Trained is one recipe "
        "for all: a document's title is told from the others of the batch by its text without the title "
        "(`finetune task=embed`); queries and judgements are not used.",
        table(
            [
                _MAIN,
                "against exact",
                *(name for name in METRICS if name != _MAIN),
                f"{_MAIN}, of the others",
            ],
            rows,
        ),
        f"{_MAIN} by trec_eval, with the grade as gain. {judged_below:,} judgements are below 0 and count "
        "as not relevant, as usual; in Cranfield they are, one for each query, the document whose author "
        "asked it, which good rankings put first. The last column leaves those documents out.",
    ]
