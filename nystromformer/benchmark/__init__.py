"""`nystromformer benchmark`: this project's parts beside the peers, on the machine at hand.

A new `what` is a module of that name here, one line in BENCHMARKS, and its own settings and complaints in
`settings.benchmark`. Its `measure(settings, device)` gives what the JSON file holds, `page(result)` the words
and lines of the page, and `draw(result, path)`, where it helps, a picture.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from nystromformer.settings.benchmark import BenchmarkSettings

__all__ = ["BENCHMARKS", "benchmark"]


class Benchmark(NamedTuple):
    """What people read of a benchmark before its figures."""

    title: str
    about: str
    """In the index of all results."""


BENCHMARKS = {
    "attention": Benchmark("Attention", "Speed and memory of the attention function beside the peers"),
    "step": Benchmark("Training steps", "Speed of whole training steps beside the peers"),
    "inference": Benchmark(
        "Inference", "Documents a second of an encoder on a CPU, beside BERT and its int8"
    ),
    "prepare": Benchmark("Preparation", "Speed of a preparation of text"),
    "loader": Benchmark("Loader", "Speed of drawing batches"),
}


def benchmark(settings: BenchmarkSettings) -> dict[str, Any]:
    """Measure, print the page and write it as Markdown, JSON and, where it helps, PNG.

    Returns:
        What the JSON file holds: the machine, the settings and what the module says.

    Raises:
        UserError: a setting is impossible, by itself or on this machine, or a file cannot be written.
    """
    settings.check()
    from nystromformer.machine import device_of, machine
    from nystromformer.results import results_folder, write_files

    what = settings.what
    module = import_module(f"{__name__}.{what}")  # now: a loader needs no contenders of attention
    device = device_of("cpu" if what in ("inference", "prepare", "loader") else settings.device)
    folder = results_folder(settings.folder)
    started, here = time.perf_counter(), machine(device)  # the commit before anything changes
    found = asdict(settings)
    del found["folder"]
    found["files"] = [Path(file).name for file in settings.files]  # paths mean nothing elsewhere
    result = {"machine": here, "settings": found, **module.measure(settings, device)}
    result["seconds"] = time.perf_counter() - started
    page = as_markdown(result)
    print(page)
    dtype = f"_{settings.dtype}" if what == "step" and settings.dtype != "float32" else ""
    compiled = "_compiled" if what == "step" and settings.compile else ""
    stem = folder / f"{what}_{device.type}{dtype}{compiled}"
    draw = getattr(module, "draw", None)
    write_files(stem, result, page, draw)
    print(f"{stem}.md, .json" + (", .png" if draw else ""))
    return result


def as_markdown(result: dict[str, Any]) -> str:
    """The page of a result."""
    what, machine = result["settings"]["what"], result["machine"]
    about, lines = import_module(f"{__name__}.{what}").page(result)
    head = [
        f"# {BENCHMARKS[what].title} on {machine['device']}",
        "",
        f"Measured by `nystromformer benchmark what={what}` in {result['seconds'] / 60:.1f} minutes: {about}",
        "",
        *(f"- {name}: {value}" for name, value in machine.items()),
    ]
    return "\n".join([*head, *lines]) + "\n"
