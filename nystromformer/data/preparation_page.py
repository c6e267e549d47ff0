"""The preparation's report as a page for people: one HTML file with its plots inside."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import Any

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:56rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;margin:1rem 0}td,th{padding:.2rem .8rem;border-bottom:1px solid #ddd;"
    "text-align:right}td:first-child,th:first-child{text-align:left}img{max-width:100%}"
)


def write_page(path: Path, report: dict[str, Any]) -> None:
    """Write the page of a report of `preparation_report`."""
    plots = base64.b64encode(draw(report)).decode()
    documents = report["documents"]
    overview = {
        "documents read": f"{documents['read']:,}",
        "text": f"{documents['megabytes']:,.1f} MB",
        "documents with examples": f"{documents['usable']:,}",
        "sentences": f"{report['sentences']:,}",
        "tokens": f"{report['tokens']:,}",
        "tokens per document": f"{report['tokens_per_document']:,.1f}",
        "unknown tokens": f"{report['unknown_token_share']:.4%}",
        f"padding of training rows at {report['max_length']}": f"{report['padding_share']['train']:.2%}",
    }
    dropped = {f"documents, {why.replace('_', ' ')}": f"{n:,}" for why, n in documents["dropped"].items()}
    dropped["tokens of last sentences left alone"] = f"{report['dropped_tokens']:,}"
    splits = report["splits"]
    names = list(next(iter(splits.values())))
    parts = [
        "<!doctype html>",
        f'<html lang="en"><meta charset="utf-8"><title>Prepared corpus</title><style>{_STYLE}</style>',
        "<h1>Prepared corpus</h1>",
        _table(["", ""], [[name, value] for name, value in overview.items()]),
        *(f"<p>{html.escape(note)}.</p>" for note in report.get("notes", [])),
        "<h2>Dropped</h2>",
        _table(["what", "how many"], [[name, value] for name, value in dropped.items()]),
        "<h2>Splits</h2>",
        _table(["", *splits], [[n.replace("_", " "), *(f"{splits[s][n]:,}" for s in splits)] for n in names]),
        "<h2>Sources</h2>",
        _table(
            ["kind", "weight", "inputs", "documents", "MB", "duplicates"],
            [
                [
                    source["kind"],
                    f"{source['weight']:g}",
                    f"{len(source['inputs']):,}",
                    f"{source['read']['documents']:,}",
                    f"{source['read']['bytes'] / 1e6:,.1f}",
                    f"{source['read']['duplicates']:,}",
                ]
                for source in report["sources"]
            ],
        ),
        f'<img alt="documents and rows by length" src="data:image/png;base64,{plots}">',
        "</html>",
    ]
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")


def draw(report: dict[str, Any]) -> bytes:
    """The two distributions as a PNG: documents by their tokens, rows by their length."""
    from matplotlib.figure import Figure  # takes a second, and without pyplot opens no window

    figure = Figure(figsize=(10, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    sizes = report["documents_by_tokens"]
    last = max((k for k, count in enumerate(sizes) if count), default=0)
    left.bar(range(last + 1), sizes[: last + 1], width=0.9)
    left.set_xticks(range(0, last + 1, 2), [f"{2**k:,}" for k in range(0, last + 1, 2)])
    left.set(xlabel="tokens of a document, from", ylabel="documents", title="Documents by length")
    lengths = report["chunks_by_length"]["train"]
    width = report["max_length"] / len(lengths)
    right.bar([(k + 0.5) * width for k in range(len(lengths))], lengths, width=0.9 * width)
    right.set(xlabel="tokens of a row", ylabel="training rows", title="Rows by length", yscale="log")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["<table>"]
    if any(head):
        lines.append("<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in head) + "</tr>")
    lines += ["<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    return "\n".join([*lines, "</table>"])
