"""`nystromformer benchmark what=inference`: a small trained encoder's documents a second on a CPU.

Each contender lives in a process of its own, which is asked in turn: its memory is its own, and one that
runs out of it ends alone.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from nystromformer.benchmark.encoders import (
    BERT,
    BERT_INT8,
    BERT_ONNX,
    NEAR,
    NEAR_BF16,
    OURS,
    OURS_BF16,
    OURS_ONNX,
    PEER,
    TWIN,
    WITH_BF16,
    Encode,
    encoder,
    trained_bert,
    write_onnx_files,
)
from nystromformer.benchmark.memory import PeakMemory
from nystromformer.benchmark.results import described, results_folder, write_results
from nystromformer.errors import UserError
from nystromformer.export import onnx_file
from nystromformer.machine import machine
from nystromformer.markdown import table
from nystromformer.settings import TrainingSettings
from nystromformer.settings.benchmark import BenchmarkSettings
from nystromformer.training import devices

ALL = (OURS, OURS_BF16, OURS_ONNX, NEAR, NEAR_BF16, PEER, BERT, BERT_ONNX, BERT_INT8)
OUR_ROWS = (OURS, OURS_BF16, OURS_ONNX, NEAR, NEAR_BF16)
SECONDS = 0.25
"""The least time of one timing; short calls are repeated within it."""


def benchmark_inference(settings: BenchmarkSettings) -> dict[str, Any]:
    """Measure every contender at every length; print the table and write it to the folder.

    Returns:
        What the JSON file holds: seconds of a call, documents a second, peak memory and ratios.

    Raises:
        UserError: no BERT, a package or the folder is missing, or nothing could be measured.
    """
    onnx_file.check_packages("what=inference")
    bert, folder = trained_bert(settings), results_folder(settings.folder)
    started, here = time.perf_counter(), machine(torch.device("cpu"))  # the commit before anything changes
    here |= {name: _version(name) for name in ("onnx", "onnxruntime")}
    names = contenders(settings)
    lengths: dict[int, dict[str, Any]] = {length: {} for length in settings.lengths}
    with tempfile.TemporaryDirectory() as scratch:
        with _worker() as alone:
            print("writing the ONNX files", flush=True)
            alone.submit(write_onnx_files, settings, Path(scratch)).result()
        workers = {name: _worker() for name in names}
        try:
            for length in settings.lengths:
                print(f"{length} tokens", flush=True)
                lengths[length] = _measure(workers, settings, length, Path(scratch))
        finally:
            for worker in workers.values():
                worker.shutdown()
    if not any(lengths.values()):
        raise UserError("no contender could be measured at any length: write smaller lengths=")
    result = {
        "machine": here,
        "settings": described(settings) | {"bert": Path(bert).parent.name if not settings.bert else bert},
        "lengths": lengths,
        "ratios": {length: ratios(row) for length, row in lengths.items()},
        "seconds": time.perf_counter() - started,
    }
    write_results(folder / "inference_cpu", result, as_markdown(result))
    return result


def contenders(settings: BenchmarkSettings) -> list[str]:
    """Those that this machine can run."""
    automatic = devices.precision(TrainingSettings(precision="auto"), torch.device("cpu"))
    left_out = () if automatic == torch.bfloat16 else WITH_BF16
    without = (NEAR, NEAR_BF16) if settings.neighbours is None else ()
    return [name for name in ALL if name not in (*left_out, *without)]


def batches(tokens: int, length: int) -> list[int]:
    """Rows to try: one, as many as `tokens` allow, and about the root of that."""
    most = max(1, tokens // length)
    return sorted({1, round(most**0.5), most})


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _worker() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def _measure(
    workers: dict[str, ProcessPoolExecutor], settings: BenchmarkSettings, length: int, folder: Path
) -> dict[str, Any]:
    """One length: each contender's best batch and memory by itself, then all in turn, `repeats` times."""
    rows: dict[str, dict[str, Any]] = {}
    for name in list(workers):
        try:
            rows[name] = _alone(workers[name], name, settings, length, folder)
        except (BrokenProcessPool, MemoryError, RuntimeError) as error:
            told = (str(error).splitlines() or [type(error).__name__])[0]
            print(f"{length} tokens of {name} are left out: {told}", flush=True)
            workers[name].shutdown()
            workers[name] = _worker()
    for _ in range(settings.repeats):
        for name, row in rows.items():
            for batch, seconds in row["seconds"].items():
                seconds.append(workers[name].submit(_timed, batch, length, settings.seed).result())
    outputs = {name: row.pop("output") for name, row in rows.items()}
    for name, row in rows.items():
        best = {batch: statistics.median(seconds) / batch for batch, seconds in row["seconds"].items()}
        batch = min(best, key=best.__getitem__)
        row["latency"] = statistics.median(row["seconds"][1])
        row["best_batch"], row["documents_per_second"] = batch, 1 / best[batch]
        if (twin := outputs.get(TWIN.get(name, ""))) is not None:
            row["off"] = ((outputs[name] - twin).norm() / twin.norm()).item()
    return rows


def _alone(
    worker: ProcessPoolExecutor, name: str, settings: BenchmarkSettings, length: int, folder: Path
) -> dict[str, Any]:
    """Opens the contender; of its batches the single row and the fastest are left, to be timed."""
    process = worker.submit(_open, name, settings, length, folder).result()
    with PeakMemory(process) as peak:
        tried = {
            batch: worker.submit(_timed, batch, length, settings.seed).result() / batch
            for batch in batches(settings.tokens, length)
        }
    best = min(tried, key=tried.__getitem__)
    output = worker.submit(_output, length, settings.seed).result()
    return {"peak_bytes": peak.bytes, "seconds": {batch: [] for batch in sorted({1, best})}, "output": output}


# --- within a contender's process ---------------------------------------------------------------------

_opened: dict[str, Encode] = {}


def _open(name: str, settings: BenchmarkSettings, length: int, folder: Path) -> int:
    """Make the contender ready; the process's number."""
    _opened.clear()  # what an earlier length had goes first
    _opened[name] = encoder(name, settings, length, folder)
    return multiprocessing.current_process().pid or 0


def _timed(batch: int, length: int, seed: int) -> float:
    """Seconds of one call, over at least SECONDS, after one that is not counted."""
    (encode,) = _opened.values()
    ids = _ids(batch, length, seed)
    encode(ids)
    calls, start = 0, time.perf_counter()
    while not calls or time.perf_counter() - start < SECONDS:
        encode(ids)
        calls += 1
    return (time.perf_counter() - start) / calls


def _output(length: int, seed: int) -> torch.Tensor:
    (encode,) = _opened.values()
    return encode(_ids(1, length, seed)).float()


def _ids(batch: int, length: int, seed: int) -> torch.Tensor:
    """Any words: what they are decides nothing of the time."""
    return torch.randint(1, 300, (batch, length), generator=torch.Generator().manual_seed(seed))


# --- the page -----------------------------------------------------------------------------------------


def ratios(row: dict[str, Any]) -> dict[str, float]:
    """What the targets speak of, at one length; above 1 means faster than the other."""
    found = {}
    others = {"the fastest float32 BERT": (BERT, BERT_ONNX), "int8 BERT": (BERT_INT8,), PEER: (PEER,)}
    for name in (name for name in OUR_ROWS if name in row):
        for other, peers in others.items():
            rates = [row[peer]["documents_per_second"] for peer in peers if peer in row]
            if rates:
                found[f"{name}: times {other}'s documents a second"] = row[name][
                    "documents_per_second"
                ] / max(rates)
    latencies = [row[name]["latency"] for name in (BERT, BERT_ONNX) if name in row]
    if latencies and OURS in row:
        found["one document: times as fast as the fastest float32 BERT"] = (
            min(latencies) / row[OURS]["latency"]
        )
    return found


def as_markdown(result: dict[str, Any]) -> str:
    """The page of results."""
    settings, rows = result["settings"], result["lengths"]
    names = [name for name in ALL if any(name in row for row in rows.values())]
    near = f", neighbours in blocks of {settings['neighbours']}" if settings["neighbours"] else ""
    lines = [
        f"# Inference on {result['machine']['device']}",
        "",
        f"Measured by `nystromformer benchmark what=inference` in {result['seconds'] / 60:.1f} minutes: the "
        f"encoder of {settings['bert']} as it is and as a Nyströmformer of {settings['landmarks']} landmarks"
        f"{near}, documents without padding to last hidden states; positions beyond its own repeat its "
        f"table. Batches hold at most {settings['tokens']} tokens (at least one document). Each contender in "
        f"a process of its own, all in turn, medians of {settings['repeats']}.",
        "",
        *(f"- {name}: {value}" for name, value in result["machine"].items()),
    ]
    for title, key, form in (
        ("Documents a second, best batch", "documents_per_second", lambda x: f"{x:,.2f}"),
        ("Documents in that batch", "best_batch", str),
        ("Milliseconds for one document", "latency", lambda x: f"{1e3 * x:,.1f}"),
        ("Peak memory of the process, MB", "peak_bytes", lambda x: f"{x / 1e6:,.0f}"),
        ("Off from the same model in PyTorch's float32, % of the outputs", "off", lambda x: f"{100 * x:.2g}"),
    ):
        found = {name: [row.get(name, {}).get(key) for row in rows.values()] for name in names}
        shown = [
            [name, *("–" if x is None else form(x) for x in values)]
            for name, values in found.items()
            if any(x is not None for x in values)
        ]
        lines += ["", f"## {title}", "", *table(["", *rows], shown)]
    lines += ["", "## Ratios, above 1 is faster", "", *_ratio_table(result["ratios"])]
    return "\n".join(lines) + "\n"


def _ratio_table(found: dict[int, dict[str, float]]) -> Sequence[str]:
    names = list(dict.fromkeys(name for row in found.values() for name in row))
    return table(
        ["", *found],
        [[name, *(f"{row[name]:.2f}" if name in row else "–" for row in found.values())] for name in names],
    )
