"""`nystromformer benchmark what=inference`: a small trained encoder's documents a second on a CPU.

Each contender lives in a process of its own, which is asked in turn: its memory is its own, and one that
runs out of it ends alone.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from importlib.metadata import version
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
    OnnxEncoder,
    encoder,
    trained_bert,
    write_onnx_files,
)
from nystromformer.benchmark.lengths import figures_by_length, mechanism_of, ratios_by_length
from nystromformer.benchmark.measure import PeakMemory, fresh_process
from nystromformer.errors import UserError
from nystromformer.export import onnx_file
from nystromformer.settings import TrainingSettings
from nystromformer.settings.benchmark import BenchmarkSettings
from nystromformer.tables import Block
from nystromformer.training import devices

ALL = (OURS, OURS_BF16, OURS_ONNX, NEAR, NEAR_BF16, PEER, BERT, BERT_ONNX, BERT_INT8)
OUR_ROWS = (OURS, OURS_BF16, OURS_ONNX, NEAR, NEAR_BF16)
SECONDS = 0.25
"""The least time of one timing; short calls are repeated within it."""


def measure(settings: BenchmarkSettings, device: torch.device) -> dict[str, Any]:
    """Seconds of a call, documents a second and peak memory of every contender at every length.

    Raises:
        UserError: no BERT, a package is missing, or nothing could be measured.
    """
    onnx_file.check_packages("what=inference")
    bert = Path(trained_bert(settings))
    lengths: dict[int, dict[str, Any]] = {length: {} for length in settings.lengths}
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        with fresh_process() as alone:
            print("writing the ONNX files", flush=True)
            alone.submit(write_onnx_files, settings, Path(scratch)).result()
        found = [Contender(name, settings, Path(scratch)) for name in contenders(settings)]
        for one in found:
            stack.callback(one.close)
        for length in settings.lengths:
            print(f"{length} tokens", flush=True)
            lengths[length] = _measure(found, settings, length)
    if not any(lengths.values()):
        raise UserError("no contender could be measured at any length: write smaller lengths=")
    return {
        "bert": bert.name if settings.bert else bert.parent.name,  # paths mean nothing elsewhere
        "onnxruntime": version("onnxruntime"),
        "lengths": lengths,
    }


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


class Contender:
    """One of the encoders, in a process that is started anew where it ended."""

    def __init__(self, name: str, settings: BenchmarkSettings, folder: Path) -> None:
        self.name, self._settings, self._folder = name, settings, folder
        self._worker = fresh_process()
        self._length = 0

    def close(self) -> None:
        self._worker.shutdown()

    def open(self, length: int) -> int:
        """Make it ready for rows of `length` tokens; the number of its process."""
        self._length = length
        return self._ask(_open, self.name, self._settings, length, self._folder)

    def alone(self, length: int) -> dict[str, Any]:
        """What it gives, and of the batches that it can hold the single row and the fastest, to be timed.

        Raises:
            DidNotFit: it cannot even hold one row.
        """
        process = self.open(length)
        tried: dict[int, float] = {}
        peaks: dict[int, int] = {}
        for batch in batches(self._settings.tokens, length):
            try:
                with PeakMemory(process) as peak:
                    tried[batch] = self.timed(batch) / batch
            except DidNotFit as error:
                if not tried:
                    raise
                self.say(f"{batch} documents at once are left out: {error}")
                self.open(length)
                break
            peaks[batch] = peak.bytes
        best = min(tried, key=tried.__getitem__)
        return {
            "peak_bytes": peaks[best],
            "seconds": {batch: [] for batch in sorted({1, best})},
            "output": self._ask(_output, length, self._settings.seed),
        }

    def timed(self, batch: int) -> float:
        """Seconds of a call of so many rows; raises DidNotFit."""
        return self._ask(_timed, batch, self._length, self._settings.seed)

    def say(self, what: str) -> None:
        print(f"{self._length} tokens, {self.name}: {what}", flush=True)

    def _ask(self, function: Callable[..., Any], *given: Any) -> Any:
        try:
            return self._worker.submit(function, *given).result()
        except BrokenProcessPool:  # how the system ends what asks for more memory than there is
            self._worker.shutdown()
            self._worker = fresh_process()
            raise DidNotFit("its process was ended, as when memory is short") from None
        except (MemoryError, RuntimeError) as error:
            raise DidNotFit((str(error).splitlines() or [type(error).__name__])[0]) from error


class DidNotFit(Exception):
    """A contender could not compute what it was asked for."""


def _measure(found: Sequence[Contender], settings: BenchmarkSettings, length: int) -> dict[str, Any]:
    """One length: each contender's best batch and memory by itself, then all in turn, `repeats` times.

    What does not fit is left out, and said; what was measured before stays.
    """
    rows: dict[str, dict[str, Any]] = {}
    for one in found:
        try:
            rows[one.name] = one.alone(length)
        except DidNotFit as error:
            one.say(f"is left out: {error}")
    for _ in range(settings.repeats):
        for one in found:
            for batch in list(rows.get(one.name, {}).get("seconds", ())):
                try:
                    rows[one.name]["seconds"][batch].append(one.timed(batch))
                except DidNotFit as error:
                    one.say(f"{batch} documents at once are not timed further: {error}")
                    one.open(length)
    outputs = {name: row.pop("output") for name, row in rows.items()}
    rows = {name: row for name, row in rows.items() if row["seconds"][1]}
    for name, row in rows.items():
        row["seconds"] = {batch: seconds for batch, seconds in row["seconds"].items() if seconds}
        best = {batch: statistics.median(seconds) / batch for batch, seconds in row["seconds"].items()}
        batch = min(best, key=best.__getitem__)
        row["latency"] = statistics.median(row["seconds"][1])
        row["best_batch"], row["documents_per_second"] = batch, 1 / best[batch]
        if (twin := outputs.get(TWIN.get(name, ""))) is not None:
            row["off"] = ((outputs[name] - twin).norm() / twin.norm()).item()
    return rows


# --- within a contender's process ---------------------------------------------------------------------

_opened: dict[str, Encode] = {}


def _open(name: str, settings: BenchmarkSettings, length: int, folder: Path) -> int:
    """Make the contender ready; the process's number."""
    _opened.clear()  # what an earlier length had goes first
    _opened[name] = encoder(name, settings, length, folder)
    return os.getpid()


def _timed(batch: int, length: int, seed: int) -> float:
    """Seconds of one call, over at least SECONDS, after one that is not counted."""
    (encode,) = _opened.values()
    ids = _ids(batch, length, seed)
    encode(ids)
    calls, start = 0, time.perf_counter()
    while not calls or time.perf_counter() - start < SECONDS:
        encode(ids)
        calls += 1
    seconds = (time.perf_counter() - start) / calls
    if isinstance(encode, OnnxEncoder):
        encode.release()  # all contenders are open at once
    return seconds


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


def page(result: dict[str, Any]) -> tuple[str, list[Block]]:
    """What was measured, in words, and the tables."""
    settings, rows = result["settings"], result["lengths"]
    about = (
        f"the encoder of {result['bert']} as it is and as a Nyströmformer of {mechanism_of(settings)}, "
        "documents without padding to last hidden states; positions beyond its own repeat its table. Batches "
        f"hold at most {settings['tokens']} tokens (at least one document). Each contender in a process of "
        f"its own, all in turn, medians of {settings['repeats']}; ONNX Runtime {result['onnxruntime']}."
    )
    figures = (
        ("Documents a second, best batch", "documents_per_second", lambda x: f"{x:,.2f}"),
        ("Documents in that batch", "best_batch", str),
        ("Milliseconds for one document", "latency", lambda x: f"{1e3 * x:,.1f}"),
        ("Peak memory of the process with that batch, MB", "peak_bytes", lambda x: f"{x / 1e6:,.0f}"),
        ("Off from the same model in PyTorch's float32, % of the outputs", "off", lambda x: f"{100 * x:.2g}"),
    )
    blocks = figures_by_length(rows, ALL, figures)
    return about, blocks + ratios_by_length("Ratios", rows, [ratios(row) for row in rows.values()])
