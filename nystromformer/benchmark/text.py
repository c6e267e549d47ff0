"""The text that preparation and loader are measured on, with one tokenizer for all contenders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nystromformer.data.corpora import open_corpus, read_documents
from nystromformer.data.examples import PretrainingExamples
from nystromformer.data.order import GlobalBatches
from nystromformer.errors import UserError
from nystromformer.settings.benchmark import BenchmarkSettings
from nystromformer.settings.data import DataSettings, TokenizerSettings
from nystromformer.settings.pretrain import PrepareSettings
from nystromformer.settings.training import TrainingSettings
from nystromformer.tables import Block, table


def preparation(settings: BenchmarkSettings, *, workers: int = 0, **data: object) -> PrepareSettings:
    """The preparation of the text that a benchmark asks for: its files, or the demo's film reviews."""
    return PrepareSettings(
        DataSettings(
            corpus="text" if settings.files else "imdb",
            files=list(settings.files),
            prepared=settings.prepared,
            workers=workers,
            **data,  # type: ignore[arg-type]
        ),
        TokenizerSettings(path=settings.tokenizer, vocab_size=settings.vocab_size),
        max_length=settings.length,
        seed=settings.seed,
    )


def named(settings: dict[str, Any]) -> str:
    """The text in words, from the settings in a result."""
    return ", ".join(settings["files"]) or "the demo's film reviews"


def texts(data: DataSettings) -> list[str]:
    """All documents of the corpus, as the preparation reads them."""
    return [document.text for document in read_documents(open_corpus(data))]


def saved_tokenizer(settings: BenchmarkSettings, documents: list[str], folder: Path) -> str:
    """The tokenizer asked for; without one, WordPiece trained on the documents and written to `folder`.

    Raises:
        UserError: there is no text to train on.
    """
    if settings.tokenizer is not None:
        return settings.tokenizer
    if not documents:
        raise UserError("files hold no documents: write files=[corpus/*.txt] with text in them")
    from nystromformer.data.tokenizer import train_tokenizer

    wanted = preparation(settings).tokenizer
    train_tokenizer(documents, wanted, max_length=settings.length).save_pretrained(str(folder))
    return str(folder)


def micro_batches(
    examples: PretrainingExamples, rows: int, seed: int, *, count: int | None = None, grouped: bool = True
) -> GlobalBatches:
    """Micro-batches of `rows`, a group of a global batch each, as the training draws them by default.

    Args:
        count: at least so many; an epoch when absent.
        grouped: by length; otherwise in plain order.
    """
    groups = TrainingSettings().length_groups if grouped else 0
    size = rows * max(groups, 1)
    count = len(examples) // rows if count is None else count
    return GlobalBatches(
        len(examples),
        global_batch_size=size,
        micro_batch_size=rows,
        seed=seed,
        num_steps=max(-(-count * rows // size), 1),
        lengths=examples.lengths if groups else None,
        length_groups=groups,
    )


def padding_shares(examples: PretrainingExamples, rows: int, seed: int) -> dict[str, float]:
    """Share of an epoch's places that are padding, in plain order, in groups of like length, and static."""
    layout = examples.layout(static=True)
    shares = {}
    for name, grouped, widths in (
        ("plain order", False, ()),
        ("groups of like length", True, ()),
        ("groups, static shapes", True, layout.widths),
    ):
        tokens = places = 0
        for keys in micro_batches(examples, rows, seed, grouped=grouped):
            lengths = examples.lengths(np.asarray([index for _, index in keys]))
            width = lengths.max()
            if widths:
                width = widths[int(np.searchsorted(widths, width))]
            tokens += int(lengths.sum())
            places += int(width) * len(keys)
        shares[name] = 1 - tokens / places
    return shares


def padding_section(shares: Mapping[str, float]) -> list[Block]:
    """The section of a page about them."""
    rows = [(name, f"{100 * share:.1f}") for name, share in shares.items()]
    return ["## Padding", table(("order of the rows", "padding, %"), rows)]
