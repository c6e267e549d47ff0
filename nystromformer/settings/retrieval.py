"""Settings of `nystromformer evaluate` on a folder of documents, queries and judgements."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nystromformer.settings.finetune import EvaluateSettings, SwapSettings
from nystromformer.settings.schema import Section, path, result


@dataclass
class RetrievalSettings(Section, at="retrieval"):
    """How documents are ranked and what the rankings are compared with, where `file` is a folder."""

    split: str = result("test", folder_name=True)
    """Which judgements: those of qrels/SPLIT.tsv, or the folder's only ones."""
    one_is_best: bool = result(False)
    """Grade 1 is the best, as in Cranfield's own judgements, not the highest grade."""
    without_below_zero: bool = result(False)
    """Leave out of a query's ranking what is judged below 0: in Cranfield's judgements the document whose
    author asked the query. False counts it as not relevant, as trec_eval does."""
    depth: int = result(100, at_least=10)
    """Documents that are kept of each ranking."""
    bm25: bool = result(True)
    """Rank by BM25 too; it holds all documents in memory."""
    exact: bool = result(True)
    """Rank by the same weights with exact attention too, where the model's is another."""
    beside: list[str] = path([])
    """More checkpoints, each a row of its own."""
    rerank: str | None = path(None)
    """A model of task=rerank that orders the first documents of every ranking anew, for another row each."""
    rerank_depth: int = result(50, at_least=1)
    """How many of them."""


@dataclass
class EvaluateCommandSettings(EvaluateSettings):
    """A fine-tuned model on a file; or one that makes vectors or reranks on a folder with judgements."""

    model: SwapSettings = field(default_factory=SwapSettings)
    retrieval: RetrievalSettings = field(default_factory=RetrievalSettings)

    def complaints_together(self) -> Iterator[str]:
        yield from super().complaints_together()
        of_file = self.file is not None and Path(self.file).expanduser().is_file()
        if self.onnx and self.file is not None and Path(self.file).expanduser().is_dir():
            why = "a folder of documents is ranked by the weights"
            yield f"onnx={self.onnx} is for file=FILE, {why}: leave it empty"
        for name, default in (("model", SwapSettings()), ("retrieval", RetrievalSettings())):
            if of_file and getattr(self, name) != default:
                yield f"{name}.* is for file=FOLDER of documents, queries and judgements: leave it empty"
