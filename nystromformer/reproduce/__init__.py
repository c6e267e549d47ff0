"""`nystromformer reproduce`: published results and this project's own.

A new result is a function here that takes the settings and returns a `results.Result`, one line in RESULTS of
`settings.reproduce`, and, where its size depends on the scale, a section of its name in `settings.scale` and
`configs/scale/`.
"""

from __future__ import annotations

import sys
import time
from importlib import import_module
from pathlib import Path

from nystromformer.errors import UserError
from nystromformer.files import Held, held
from nystromformer.settings.reproduce import ALL, RESULTS, ReproduceSettings

__all__ = ["produce", "reproduce"]


def reproduce(settings: ReproduceSettings) -> None:
    """Produce one result, all of them and the page that shows them, or compare two; the path is printed last.

    Raises:
        UserError: a setting is impossible, or a result cannot be produced; with `all` after the others.
    """
    settings.check()
    if settings.compare:
        from nystromformer.reproduce.compare import compare

        print(compare(settings))
        return
    if not settings.all:
        print(produce(settings, settings.result))
        return
    from nystromformer.reproduce.pages import write_report

    absent: dict[str, str] = {}
    for name in ALL:
        print(f"\n== {name}", flush=True)
        try:
            produce(settings, name)
        except Held:  # the same command runs already: two would only get in each other's way
            raise
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
    """Measure one result and write its folder; one that is there, by the same settings and inputs, is left.

    Returns:
        The folder.

    Raises:
        UserError: it cannot be measured or written; Held, where another process measures it.
    """
    from nystromformer.results import results_folder

    folder = results_folder(settings.folder) / f"{name}_{settings.scale.name}"
    with held(folder.with_name(f".{folder.name}.lock"), str(folder), "write folder=OTHER") as lock:
        _produce(settings, name, folder)
        lock.unlink(missing_ok=True)  # while it is held: results are read by people
    return folder


def _produce(settings: ReproduceSettings, name: str, folder: Path) -> None:
    from nystromformer.machine import device_of, machine
    from nystromformer.reproduce.inputs import changed_inputs, inputs_of, measured_on
    from nystromformer.reproduce.lengthened import lengthened
    from nystromformer.reproduce.pages import write_index
    from nystromformer.reproduce.result import command_of, configuration_of, read_finished
    from nystromformer.reproduce.runs import earlier_seconds
    from nystromformer.results import write_result

    device, command = device_of(settings.device), command_of(settings, name)
    settings = lengthened(settings, name)
    configuration, inputs = configuration_of(settings, name, device.type), inputs_of(settings, name)
    if not settings.again and (found := read_finished(folder, configuration)):
        date, changed = found["machine"]["date"], changed_inputs(found, inputs)
        if not changed:
            print(f"{name}: measured already on {date}, {folder}; again=true measures anew")
            return
        print(f"{name}: {', '.join(changed)}: another than on {date}, so it is measured anew", flush=True)
    started, here = time.perf_counter(), machine(device)  # the commit before anything changes
    module, _, function = RESULTS[name].function.partition(":")
    with earlier_seconds() as before:
        result = getattr(import_module(f"{__name__}.{module}"), function)(settings)
    about = {
        "result": name,
        "scale": settings.scale.name,
        "told": settings.scale.told,
        "configuration": configuration,
        "inputs": measured_on(inputs, inputs_of(settings, name)),
        "machine": here,
        "command": command,
        "seconds": time.perf_counter() - started + sum(before),
        "seconds_before": sum(before),
    }
    write_result(folder, result, about)
    print((folder / "README.md").read_text(encoding="utf-8"))
    with held(folder.with_name(".README.md.lock"), str(folder.parent), "write folder=OTHER", wait=60) as lock:
        write_index(folder.parent)
        lock.unlink(missing_ok=True)
