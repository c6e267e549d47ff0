"""report.html: every result of one scale on one page that needs no other file."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from markdown_it import MarkdownIt

from nystromformer.reproduce.result import read_result

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;margin:1rem 0;display:block;overflow-x:auto}"
    "td,th{padding:.2rem .8rem;border-bottom:1px solid #ddd}img{max-width:100%}"
    "section{border-top:2px solid #888;margin-top:3rem}.absent{background:#fff3cd;padding:.5rem 1rem}"
    "code{background:#f4f4f4;padding:0 .2rem}"
)
_PICTURE = re.compile(r'src="([\w.-]+\.png)"')


def write_report(folder: Path, scale: str, names: Sequence[str], absent: Mapping[str, str]) -> Path:
    """Write the page.

    Args:
        folder: where the results are, NAME_SCALE each.
        scale: whose results.
        names: the results that belong on the page, in order.
        absent: of these, what could not be produced, and why.
    """
    parts, contents = [], []
    for name in names:
        found = None if name in absent else read_result(folder / f"{name}_{scale}")
        if found is None:
            reason = absent.get(name, "not measured yet")
            contents.append(
                f'<li>{html.escape(name)}: <b class="absent">absent</b> {html.escape(reason)}</li>'
            )
            continue
        contents.append(
            f'<li><a href="#{name}">{html.escape(found["title"])}</a>: {_inline(found["headline"])}</li>'
        )
        parts.append(f'<section id="{name}">{_rendered(folder / f"{name}_{scale}")}</section>')
    page = [
        "<!doctype html>",
        f'<html lang="en"><meta charset="utf-8"><title>Nyströmformer, scale {html.escape(scale)}</title>',
        f"<style>{_STYLE}</style>",
        f"<h1>Nyströmformer: tables and figures, scale {html.escape(scale)}</h1>",
        f"<ul>{''.join(contents)}</ul>",
        *parts,
        "</html>",
    ]
    path = folder / "report.html"
    beside = folder / ".report.html.unfinished"
    beside.write_text("\n".join(page) + "\n", encoding="utf-8")
    beside.replace(path)
    return path


def _markdown() -> MarkdownIt:
    return MarkdownIt("commonmark").enable("table")


def _inline(text: str) -> str:
    return _markdown().renderInline(text)


def _rendered(folder: Path) -> str:
    """A result's page as HTML, its pictures inside."""
    rendered = _markdown().render((folder / "README.md").read_text(encoding="utf-8"))

    def inside(match: re.Match[str]) -> str:
        return f'src="data:image/png;base64,{base64.b64encode((folder / match[1]).read_bytes()).decode()}"'

    return _PICTURE.sub(inside, rendered)
