"""`nystromformer benchmark what=prepare` and `what=loader`: how fast text becomes examples, then batches.

The preparation is measured beside the tokenizers library alone, with the same text, tokenizer and number of
cores. It reads files, cleans, splits into sentences, tokenizes, packs and writes; `encode_batch` only
tokenizes strings that are in memory already, in its own threads. So a ratio of 1 would mean that everything
else was free.

The loader is measured by tokens a second and by how soon the first batch comes, each number of worker
processes in a fresh process, so that its first start is as slow as a training's. Real tokens are counted,
never padding.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nystromformer.benchmark.memory import PeakMemory
from nystromformer.benchmark.results import described, results_folder, write_results
from nystromformer.data.corpora import open_corpus, read_documents
from nystromformer.data.examples import PretrainingExamples
from nystromformer.data.loader import start_server, training_loader
from nystromformer.data.order import GlobalBatches
from nystromformer.data.prepare import prepare
from nystromformer.data.storage import PreparedData
from nystromformer.errors import UserError
from nystromformer.machine import machine
from nystromformer.markdown import table
from nystromformer.settings.benchmark import BenchmarkSettings
from nystromformer.settings.data import DataSettings, TokenizerSettings
from nystromformer.settings.pretrain import PrepareSettings
from nystromformer.settings.training import TrainingSettings

OURS, ENCODE = "preparation", "encode_batch"
_BATCH_CHARACTERS = 2**23  # of encode_batch: large enough to keep all threads busy, small enough for memory
_ROWS = 64  # of a micro-batch, for the padding share of a preparation


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


# --- preparation --------------------------------------------------------------------------------------


def benchmark_prepare(settings: BenchmarkSettings) -> dict[str, Any]:
    """Train the tokenizer, run both on the text, print and write the table.

    Returns:
        What the JSON file holds: seconds, MB/s and peak bytes of both, and what was prepared.

    Raises:
        UserError: the text cannot be read or the folder cannot be written.
    """
    folder = results_folder(settings.folder)
    started, here = time.perf_counter(), machine(torch.device("cpu"))
    workers = settings.workers or os.cpu_count() or 1
    documents = texts(preparation(settings).data)
    megabytes = sum(len(text.encode("utf-8", "replace")) for text in documents) / 1e6
    with tempfile.TemporaryDirectory(dir=folder, prefix=".prepare-") as scratch:
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
        result = {
            "machine": here,
            "settings": described(settings),
            "workers": workers,
            "megabytes": megabytes,
            "runs": {
                name: {**run, "mb_per_second": megabytes / run["seconds"]} for name, run in runs.items()
            },
            "ratio": runs[ENCODE]["seconds"] / runs[OURS]["seconds"],
            "reading_and_tokenizer_seconds": trained,
            "counts": prepared.manifest["counts"],
            "padding": padding_shares(examples_of(prepared, settings), _ROWS, settings.seed),
            "seconds": time.perf_counter() - started,
        }
        shutil.rmtree(prepared.folder)
    write_results(folder / "prepare_cpu", result, preparation_page(result))
    return result


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


def in_a_fresh_process(
    work: Callable[[PrepareSettings], dict[str, float]], wanted: PrepareSettings, workers: int
) -> dict[str, float]:
    """Run `work` in a process of its own with so many threads, and watch its memory and its children's."""
    print(f"{work.__name__}, {workers} cores", flush=True)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _set_threads, (workers,)) as pool:
        child = pool.submit(os.getpid).result()
        with PeakMemory(child) as peak:
            found = pool.submit(work, wanted).result()
    return {**found, "peak_bytes": peak.bytes}


def _set_threads(number: int) -> None:
    """Of the tokenizers library, which asks when it first encodes."""
    os.environ.update(RAYON_NUM_THREADS=str(number), TOKENIZERS_PARALLELISM="true")


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


# --- loader -------------------------------------------------------------------------------------------


def benchmark_loader(settings: BenchmarkSettings) -> dict[str, Any]:
    """Prepare the text if need be, draw batches with each number of workers, print and write the table.

    Returns:
        What the JSON file holds: tokens a second and seconds to the first batch by number of workers.

    Raises:
        UserError: the text cannot be prepared or the folder cannot be written.
    """
    folder = results_folder(settings.folder)
    started, here = time.perf_counter(), machine(torch.device("cpu"))
    prepared = prepare(preparation(settings))
    rows = max(settings.tokens // settings.length, 1)
    found = {}
    for workers in settings.loader_workers:
        print(f"{workers} workers", flush=True)
        # Spawned: it starts as a training does, without what an earlier measurement left.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            found[workers] = fresh.submit(measure_workers, prepared.folder, settings, rows, workers).result()
    result = {
        "machine": here,
        "settings": described(settings),
        "prepared": prepared.folder.name,
        "rows": rows,
        "workers": found,
        "padding": padding_shares(examples_of(prepared, settings), rows, settings.seed),
        "seconds": time.perf_counter() - started,
    }
    write_results(folder / "loader_cpu", result, loader_page(result))
    return result


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
        examples = examples_of(PreparedData.open(folder), settings)
        order = micro_batches(examples, rows, settings.seed, count=settings.batches + 1)
        loader = iter(training_loader(examples, order, examples.layout(static=False), workers=workers))
        next(loader)
        first = time.perf_counter()
        tokens = sum(int(batch["attention_mask"].sum()) for batch in loader)
        rates.append(tokens / (time.perf_counter() - first))
        first_seconds.append(first - start)
        del loader
    return {"first_batch_seconds": first_seconds, "tokens_per_second": rates}


# --- what both tell -----------------------------------------------------------------------------------


def examples_of(prepared: PreparedData, settings: BenchmarkSettings) -> PretrainingExamples:
    """The training examples at the benchmark's length."""
    return PretrainingExamples(prepared, "train", max_length=settings.length, seed=settings.seed)


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
    shares = {}
    for name, grouped, widths in (
        ("plain order", False, ()),
        ("groups of like length", True, ()),
        ("groups, static shapes", True, examples.layout(static=True).widths),
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


def preparation_page(result: dict[str, Any]) -> str:
    """The page of the preparation's results."""
    train = result["counts"]["train"]
    method = (
        f"{result['megabytes']:.1f} MB of text ({_text(result)}) to examples of "
        f"{result['settings']['length']} tokens on {result['workers']} cores, beside the tokenizers "
        "library's `encode_batch` on the same text in memory, with the same tokenizer. Memory is the highest "
        "sum over all processes of each; that of `encode_batch` holds the whole text."
    )
    speed = [
        [name, f"{run['seconds']:.1f}", f"{run['mb_per_second']:.2f}", f"{run['peak_bytes'] / 1e9:.2f}"]
        for name, run in result["runs"].items()
    ]
    lines = [
        *table(["", "seconds", "MB/s", "peak memory, GB"], speed),
        "",
        f"The preparation runs at {result['ratio']:.2f} of the speed of `encode_batch`. It wrote "
        f"{train['chunks']:,} chunks of {train['tokens']:,} tokens for training.",
    ]
    return _page("Preparation", "prepare", result, method, lines)


def loader_page(result: dict[str, Any]) -> str:
    """The page of the loader's results."""
    settings = result["settings"]
    method = (
        f"batches of {result['rows']} rows of up to {settings['length']} tokens from {_text(result)}, pairs "
        f"and masks drawn for each; {settings['batches']} batches, medians of {settings['repeats']}. Real "
        "tokens, not padding. The first batch is timed from opening the prepared folder, and the slowest "
        "start counts: the first, which also starts the server that workers come from."
    )
    speed = [
        [
            workers,
            f"{statistics.median(found['tokens_per_second']) / 1e6:.2f}",
            f"{max(found['first_batch_seconds']):.2f}",
        ]
        for workers, found in result["workers"].items()
    ]
    head = ["worker processes", "million tokens a second", "first batch, s"]
    return _page("Loader", "loader", result, method, ["## Speed", "", *table(head, speed)])


def _text(result: dict[str, Any]) -> str:
    return ", ".join(result["settings"]["files"]) or "the demo's film reviews"


def _page(title: str, what: str, result: dict[str, Any], method: str, speed: list[str]) -> str:
    padding = [[name, f"{100 * share:.1f}"] for name, share in result["padding"].items()]
    minutes = result["seconds"] / 60
    lines = [
        f"# {title} on {result['machine']['device']}",
        "",
        f"Measured by `nystromformer benchmark what={what}` in {minutes:.1f} minutes: {method}",
        "",
        *(f"- {name}: {value}" for name, value in result["machine"].items()),
        "",
        *speed,
        "",
        "## Padding",
        "",
        *table(["order of the rows", "padding, %"], padding),
    ]
    return "\n".join(lines) + "\n"
