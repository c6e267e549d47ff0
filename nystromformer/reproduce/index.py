"""FOLDER/README.md: the list of all that was measured there, made from the JSON files and never typed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nystromformer.files import write_atomically
from nystromformer.reproduce.result import read_result
from nystromformer.settings.reproduce import ALL, OWN
from nystromformer.tables import table

BENCHMARKS = {
    "attention": "Speed and memory of the attention function beside the peers",
    "step": "Speed of whole training steps beside the peers",
    "prepare": "Speed of a preparation of text",
    "loader": "Speed of drawing batches",
}
"""What the page of each `nystromformer benchmark what=…` is about."""


def write_index(folder: Path) -> Path:
    """List every result and benchmark of the folder."""
    lines = [
        "# Results",
        "",
        "Measured by `nystromformer reproduce` and `nystromformer benchmark`. Made from the JSON files here "
        "after each result: changes by hand are lost.",
        "",
    ]
    if results := list(_results(folder)):
        lines += [*table(("result", "scale", "figures", "device", "date", "commit"), results), ""]
    if benchmarks := list(_benchmarks(folder)):
        lines += ["## Benchmarks", "", *table(("benchmark", "about", "device", "date", "commit"), benchmarks)]
        lines += [""]
    path = folder / "README.md"
    write_atomically(path, "\n".join(lines))
    return path


def _results(folder: Path) -> Iterator[tuple[str, ...]]:
    found = [(each.parent.name, read_result(each.parent)) for each in folder.glob("[!.]*/result.json")]
    place = {name: number for number, name in enumerate((*ALL, *OWN))}
    known = [(name, content) for name, content in found if content is not None]
    for name, content in sorted(known, key=lambda pair: (place.get(pair[1]["result"], 99), pair[0])):
        yield (
            f"[{content['title']}]({name}/README.md)",
            content["scale"],
            content["headline"],
            *_where(content["machine"]),
        )


def _benchmarks(folder: Path) -> Iterator[tuple[str, ...]]:
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        what = content.get("settings", {}).get("what")
        if what in BENCHMARKS and path.with_suffix(".md").is_file():
            yield f"[{path.stem}]({path.stem}.md)", BENCHMARKS[what], *_where(content["machine"])


def _where(machine: dict[str, Any]) -> tuple[str, str, str]:
    return machine["device"], machine["date"], f"`{machine['commit']}`"
