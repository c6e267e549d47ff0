"""All results of a folder: README.md, the list of what was measured, and report.html, those of one scale.

Both are made from the files of the results and never typed.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nystromformer.benchmark import BENCHMARKS
from nystromformer.files import write_atomically
from nystromformer.results import read_result
from nystromformer.settings.reproduce import RESULTS
from nystromformer.tables import Block, page_of, table

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;margin:1rem 0;display:block;overflow-x:auto}"
    "td,th{padding:.2rem .8rem;border-bottom:1px solid #ddd}img{max-width:100%}"
    "section{border-top:2px solid #888;margin-top:3rem}.absent{background:#fff3cd;padding:.5rem 1rem}"
    "code{background:#f4f4f4;padding:0 .2rem}"
)
_PICTURE = re.compile(r'src="([\w.-]+\.png)"')


def write_report(folder: Path, scale: str, names: Sequence[str], absent: Mapping[str, str]) -> Path:
    """Write report.html, which needs no other file.

    Args:
        folder: where the results are, NAME_SCALE each.
        scale: whose results.
        names: the results that belong on the page, in order.
        absent: of these, what could not be produced, and why.
    """
    parts, contents = [], []
    for name in names:
        place = folder / f"{name}_{scale}"
        found = None if name in absent else read_result(place)
        if found is None:
            reason = html.escape(absent.get(name, "not measured yet"))
            contents.append(f'<li>{html.escape(name)}: <b class="absent">absent</b> {reason}</li>')
            continue
        headline = _html_of(found["headline"], place, inline=True)
        contents.append(f'<li><a href="#{name}">{html.escape(found["title"])}</a>: {headline}</li>')
        section = _html_of((place / "README.md").read_text(encoding="utf-8"), place)
        parts.append(f'<section id="{name}">{section}</section>')
    path = folder / "report.html"
    page = [
        "<!doctype html>",
        f'<html lang="en"><meta charset="utf-8"><title>Nyströmformer, scale {html.escape(scale)}</title>',
        f"<style>{_STYLE}</style>",
        f"<h1>Nyströmformer: tables and figures, scale {html.escape(scale)}</h1>",
        f"<ul>{''.join(contents)}</ul>",
        *parts,
        "</html>\n",
    ]
    write_atomically(path, "\n".join(page))
    return path


def write_index(folder: Path) -> Path:
    """Write README.md: every result and benchmark of the folder."""
    blocks: list[Block] = [
        "# Results",
        "Measured by `nystromformer reproduce` and `nystromformer benchmark`. Made from the JSON files here "
        "after each result: changes by hand are lost.",
    ]
    if results := list(_results(folder)):
        blocks.append(table(("result", "scale", "figures", "device", "date", "commit"), results))
    if benchmarks := list(_benchmarks(folder)):
        head = ("benchmark", "about", "device", "date", "commit")
        blocks += ["## Benchmarks", table(head, benchmarks)]
    path = folder / "README.md"
    write_atomically(path, page_of(blocks))
    return path


def _results(folder: Path) -> Iterator[tuple[str, ...]]:
    found = [(each.parent.name, read_result(each.parent)) for each in folder.glob("[!.]*/result.json")]
    place = {name: number for number, name in enumerate(RESULTS)}
    known = [(name, content) for name, content in found if content is not None]
    for name, content in sorted(known, key=lambda pair: (place.get(pair[1]["result"], 99), pair[0])):
        title = f"[{content['title']}]({name}/README.md)"
        yield title, content["scale"], content["headline"], *_where(content["machine"])


def _benchmarks(folder: Path) -> Iterator[tuple[str, ...]]:
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        what = content.get("settings", {}).get("what")
        if what in BENCHMARKS and path.with_suffix(".md").is_file():
            yield f"[{path.stem}]({path.stem}.md)", BENCHMARKS[what].about, *_where(content["machine"])


def _where(machine: dict[str, Any]) -> tuple[str, str, str]:
    return machine["device"], machine["date"], f"`{machine['commit']}`"


def _html_of(markdown: str, pictures: Path, *, inline: bool = False) -> str:
    """Markdown as HTML, the pictures of a folder that it names inside; `inline` for a part of a line."""
    from markdown_it import MarkdownIt

    def embedded(match: re.Match[str]) -> str:
        return f'src="data:image/png;base64,{base64.b64encode((pictures / match[1]).read_bytes()).decode()}"'

    renderer = MarkdownIt("commonmark").enable("table")
    return _PICTURE.sub(embedded, renderer.renderInline(markdown) if inline else renderer.render(markdown))
