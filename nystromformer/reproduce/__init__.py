"""`nystromformer reproduce`: published results and this project's own, one module a result.

A new result is a module here with a function that takes the settings and returns a `Result`, one line in
RESULTS, its name in FIGURES or TABLES of `settings.reproduce`, and, where its size depends on the scale, a
section of that name in `settings.scale` and `configs/scale/`.
"""

from __future__ import annotations

import sys
import time
from importlib import import_module
from pathlib import Path

from nystromformer.errors import UserError
from nystromformer.settings.reproduce import ALL, ReproduceSettings

__all__ = ["RESULTS", "produce", "reproduce"]

RESULTS = {
    "efficiency": "nystromformer.reproduce.efficiency:efficiency",
    "landmarks": "nystromformer.reproduce.heads:landmarks",
    "num_landmarks": "nystromformer.reproduce.heads:num_landmarks",
    "pseudoinverse": "nystromformer.reproduce.heads:pseudoinverse",
    "longer": "nystromformer.reproduce.longer:longer",
    "small": "nystromformer.reproduce.small:small",
    "nystrom_tutorial": "nystromformer.reproduce.nystrom_tutorial:nystrom_tutorial",
    "glue": "nystromformer.reproduce.glue:glue",
    "lra": "nystromformer.reproduce.lra:lra",
    "starts": "nystromformer.reproduce.starts:starts",
    "warmstart": "nystromformer.reproduce.warmstart:warmstart",
    "finetune": "nystromformer.reproduce.transfer:finetune",
    "short_rows": "nystromformer.reproduce.transfer:short_rows",
}
"""What produces each figure and table, imported when it is asked for."""


def reproduce(settings: ReproduceSettings) -> None:
    """Produce one result, or all of them and the page that shows them; the path is printed last.

    Raises:
        UserError: a setting is impossible, or a result cannot be produced; with `all` after the others.
    """
    if complaints := list(settings.complaints()):
        raise UserError("\n".join(complaints))
    if not settings.all:
        print(produce(settings, settings.result))
        return
    from nystromformer.reproduce.page import write_report

    absent: dict[str, str] = {}
    for name in ALL:
        print(f"\n== {name}", flush=True)
        try:
            produce(settings, name)
        except UserError as error:
            absent[name] = str(error)
            print(f"{name} is absent: {error}", flush=True)
    page = write_report(Path(settings.folder), settings.scale.name, ALL, absent)
    for name, reason in absent.items():
        print(f"nystromformer: {name} is absent: {reason}", file=sys.stderr)
    print(page, flush=True)
    if absent:
        raise UserError("")  # told above, so that the path stays the last line


def produce(settings: ReproduceSettings, name: str) -> Path:
    """Measure one result and write its folder; one that is there already, by the same settings, is left.

    Returns:
        The folder.

    Raises:
        UserError: it cannot be measured or written.
    """
    from nystromformer.benchmark.results import device_of, results_folder
    from nystromformer.machine import machine
    from nystromformer.reproduce.index import write_index
    from nystromformer.reproduce.result import (
        command_of,
        configuration_of,
        read_finished,
        result_folder,
        write_result,
    )

    root, folder = results_folder(settings.folder), result_folder(settings, name)
    device = device_of(settings.device)
    configuration = configuration_of(settings, name, device.type)
    if not settings.again and (found := read_finished(folder, configuration)):
        print(f"{name}: measured already on {found['machine']['date']}, {folder}; again=true measures anew")
        return folder
    started, here = time.perf_counter(), machine(device)  # the commit before anything changes
    module, _, function = RESULTS[name].partition(":")
    result = getattr(import_module(module), function)(settings)
    about = {
        "result": name,
        "scale": settings.scale.name,
        "told": settings.scale.told,
        "configuration": configuration,
        "machine": here,
        "command": command_of(settings, name),
        "seconds": time.perf_counter() - started,
    }
    write_result(folder, result, about)
    print((folder / "README.md").read_text(encoding="utf-8"))
    write_index(root)
    return folder
