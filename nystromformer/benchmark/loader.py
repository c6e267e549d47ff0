"""`nystromformer benchmark what=loader`: tokens a second from the loader, and how soon the first batch comes.

Each number of worker processes is measured in a fresh process, so that its first start is as slow as
a training's. Real tokens are counted, never padding.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch

from nystromformer.benchmark.measure import fresh_process
from nystromformer.benchmark.text import micro_batches, named, padding_section, padding_shares, preparation
from nystromformer.data.examples import PretrainingExamples
from nystromformer.data.loader import start_server, training_loader
from nystromformer.data.prepare import prepare
from nystromformer.data.storage import PreparedData
from nystromformer.settings.benchmark import BenchmarkSettings
from nystromformer.tables import Block, table


def measure(settings: BenchmarkSettings, device: torch.device) -> dict[str, Any]:
    """Prepare the text if need be, and draw batches with each number of workers.

    Raises:
        UserError: the text cannot be prepared.
    """
    prepared = prepare(preparation(settings))
    rows = max(settings.tokens // settings.length, 1)
    found = {}
    for workers in settings.loader_workers:
        print(f"{workers} workers", flush=True)
        with fresh_process() as fresh:
            found[workers] = fresh.submit(measure_workers, prepared.folder, settings, rows, workers).result()
    examples = PretrainingExamples(prepared, "train", max_length=settings.length, seed=settings.seed)
    return {
        "prepared": prepared.folder.name,
        "rows": rows,
        "workers": found,
        "padding": padding_shares(examples, rows, settings.seed),
    }


def measure_workers(folder: Path, settings: BenchmarkSettings, rows: int, workers: int) -> dict[str, Any]:
    """Draw `settings.batches` batches, `repeats` times, each time from opening the folder on.

    Returns:
        For each time the seconds from opening to the first batch, and the real tokens a second of the
        batches after it.
    """
    if workers == 0:
        torch.set_num_threads(1)  # as a worker has
    first_seconds, rates = [], []
    for _ in range(settings.repeats):
        start = time.perf_counter()
        if workers:
            start_server()
        examples = PretrainingExamples(
            PreparedData.open(folder), "train", max_length=settings.length, seed=settings.seed
        )
        order = micro_batches(examples, rows, settings.seed, count=settings.batches + 1)
        loader = iter(training_loader(examples, order, examples.layout(static=False), workers=workers))
        next(loader)
        first = time.perf_counter()
        tokens = sum(int(batch["attention_mask"].sum()) for batch in loader)
        rates.append(tokens / (time.perf_counter() - first))
        first_seconds.append(first - start)
        del loader
    return {"first_batch_seconds": first_seconds, "tokens_per_second": rates}


def page(result: dict[str, Any]) -> tuple[str, list[Block]]:
    """What was measured, in words, and the tables."""
    settings = result["settings"]
    about = (
        f"batches of {result['rows']} rows of up to {settings['length']} tokens from {named(settings)}, "
        f"pairs and masks drawn for each; {settings['batches']} batches, medians of {settings['repeats']}. "
        "Real tokens, not padding. The first batch is timed from opening the prepared folder, and the "
        "slowest start counts: the first, which also starts the server that workers come from."
    )
    speeds = [
        (
            workers,
            f"{statistics.median(found['tokens_per_second']) / 1e6:.2f}",
            f"{max(found['first_batch_seconds']):.2f}",
        )
        for workers, found in result["workers"].items()
    ]
    head = ("worker processes", "million tokens a second", "first batch, s")
    return about, ["## Speed", table(head, speeds), *padding_section(result["padding"])]
