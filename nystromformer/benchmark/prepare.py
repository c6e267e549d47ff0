"""`nystromformer benchmark what=prepare`: a full preparation beside the tokenizers library alone.

Both get the same text, the same tokenizer and the same number of cores. The preparation reads files,
cleans, splits into sentences, tokenizes, packs and writes; `encode_batch` only tokenizes strings that
are in memory already, in its own threads. So a ratio of 1 would mean that everything else was free.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nystromformer.benchmark.measure import PeakMemory, fresh_process
from nystromformer.benchmark.text import (
    named,
    padding_section,
    padding_shares,
    preparation,
    saved_tokenizer,
    texts,
)
from nystromformer.data.examples import PretrainingExamples
from nystromformer.data.prepare import prepare
from nystromformer.data.storage import PreparedData
from nystromformer.settings.benchmark import BenchmarkSettings
from nystromformer.settings.pretrain import PrepareSettings
from nystromformer.tables import Block, table

OURS, ENCODE = "preparation", "encode_batch"
_BATCH_CHARACTERS = 2**23  # of encode_batch: large enough to keep all threads busy, small enough for memory
_ROWS = 64  # of a micro-batch, for the padding share


def measure(settings: BenchmarkSettings, device: torch.device) -> dict[str, Any]:
    """Train the tokenizer and run both on the text: seconds, MB/s and peak bytes, and what was prepared.

    Raises:
        UserError: the text cannot be read.
    """
    started = time.perf_counter()
    workers = settings.workers or os.cpu_count() or 1
    documents = texts(preparation(settings).data)
    megabytes = sum(len(text.encode("utf-8", "replace")) for text in documents) / 1e6
    with tempfile.TemporaryDirectory(dir=settings.folder, prefix=".prepare-") as scratch:
        tokenizer = saved_tokenizer(settings, documents, Path(scratch, "tokenizer"))
        trained = time.perf_counter() - started
        del documents
        wanted = preparation(
            dataclasses.replace(settings, tokenizer=tokenizer),
            workers=workers,
            folder=str(Path(scratch, "data")),
        )
        runs = {
            ENCODE: in_a_fresh_process(encode, wanted, workers),
            OURS: in_a_fresh_process(prepare_once, wanted, workers),
        }
        prepared = PreparedData.open(next(Path(scratch, "data").glob("*/manifest.json")).parent)
        examples = PretrainingExamples(prepared, "train", max_length=settings.length, seed=settings.seed)
        result = {
            "workers": workers,
            "megabytes": megabytes,
            "runs": {
                name: {**run, "mb_per_second": megabytes / run["seconds"]} for name, run in runs.items()
            },
            "ratio": runs[ENCODE]["seconds"] / runs[OURS]["seconds"],
            "reading_and_tokenizer_seconds": trained,
            "counts": prepared.manifest["counts"],
            "padding": padding_shares(examples, _ROWS, settings.seed),
        }
        shutil.rmtree(prepared.folder)
    return result


def in_a_fresh_process(
    work: Callable[[PrepareSettings], dict[str, float]], wanted: PrepareSettings, workers: int
) -> dict[str, float]:
    """Run `work` in a process of its own with so many threads, and watch its memory and its children's."""
    print(f"{work.__name__}, {workers} cores", flush=True)
    with fresh_process(_set_threads, (workers,)) as pool:
        child = pool.submit(os.getpid).result()
        with PeakMemory(child) as peak:
            found = pool.submit(work, wanted).result()
    return {**found, "peak_bytes": peak.bytes}


def _set_threads(count: int) -> None:
    """Of the tokenizers library, before its first use in this process and all that it starts."""
    os.environ.update(RAYON_NUM_THREADS=str(count), TOKENIZERS_PARALLELISM="true")


def prepare_once(wanted: PrepareSettings) -> dict[str, float]:
    """The whole preparation; its processes are started within the time."""
    start = time.perf_counter()
    prepare(wanted, show_progress=False)
    return {"seconds": time.perf_counter() - start}


def encode(wanted: PrepareSettings) -> dict[str, float]:
    """`encode_batch` over the paragraphs of the same documents, 8 million characters at a time.

    Paragraphs and not documents, because a few long documents would leave threads without work.
    """
    from tokenizers import Tokenizer

    from nystromformer.data.tokenizer import load_tokenizer, plain_backend

    tokenizer = Tokenizer.from_str(plain_backend(load_tokenizer(str(wanted.tokenizer.path))))
    paragraphs = [line for text in texts(wanted.data) for line in text.splitlines()]
    seconds = tokens = 0.0
    batch: list[str] = []
    characters = 0
    for number, paragraph in enumerate(paragraphs, start=1):
        batch.append(paragraph)
        characters += len(paragraph)
        if characters >= _BATCH_CHARACTERS or number == len(paragraphs):
            start = time.perf_counter()
            encodings = tokenizer.encode_batch(batch, add_special_tokens=False)
            seconds += time.perf_counter() - start
            tokens += sum(map(len, encodings))
            batch, characters = [], 0
    return {"seconds": seconds, "tokens": tokens}


def page(result: dict[str, Any]) -> tuple[str, list[Block]]:
    """What was measured, in words, and the tables."""
    settings, train = result["settings"], result["counts"]["train"]
    about = (
        f"{result['megabytes']:.1f} MB of text ({named(settings)}) to examples of {settings['length']} "
        f"tokens on {result['workers']} cores, beside the tokenizers library's `encode_batch` on the same "
        "text in memory, with the same tokenizer. Memory is the highest sum over all processes of each; "
        "that of `encode_batch` holds the whole text."
    )
    rows = [
        (name, f"{run['seconds']:.1f}", f"{run['mb_per_second']:.2f}", f"{run['peak_bytes'] / 1e9:.2f}")
        for name, run in result["runs"].items()
    ]
    return about, [
        table(("", "seconds", "MB/s", "peak memory, GB"), rows),
        f"The preparation runs at {result['ratio']:.2f} of the speed of `encode_batch`. It wrote "
        f"{train['chunks']:,} chunks of {train['tokens']:,} tokens for training.",
        *padding_section(result["padding"]),
    ]
