"""What a preparation made: as figures, `report.json`, and as a page with plots, `report.html`.

Padding is told for rows that are each padded to `max_length`, as in a batch that holds any row of full
length. Rows shorter than that are the short sequences that ALBERT's recipe asks for, the last chunk of
each document, and the room that the next sentence did not fit into. Batches of rows of like length pad
less: that is the loader's work, which measures its own share.
"""

from __future__ import annotations

import base64
import html
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nystromformer.data.documents import SPLITS
from nystromformer.data.reading import ReadCounts
from nystromformer.data.segmentation import SPECIAL_TOKENS_OF_A_PAIR
from nystromformer.data.storage import REPORT, REPORT_PAGE, UNIGRAM_COUNTS, ShardColumns, ShardInfo
from nystromformer.data.unfinished import Block, Unfinished, totals

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


_LENGTH_CLASSES = 32


def make_report(
    work: Unfinished,
    blocks: list[Block],
    shards: dict[str, list[ShardInfo]],
    tokenizer: PreTrainedTokenizerFast,
) -> tuple[dict[str, Any], NDArray[np.int64]]:
    """The report, and how often each token occurs in the training split, (vocabulary,)."""
    counts, read = totals(blocks)
    max_length = work.plan.settings.max_length
    measured = {split: measure(work.path, shards[split], len(tokenizer), max_length) for split in SPLITS}
    tokens = sum(counts[split].tokens for split in SPLITS)
    usable = sum(counts[split].documents for split in SPLITS)
    all_read = ReadCounts()
    for part in read:
        all_read.add(part)
    unknown = tokenizer.unk_token_id
    unknown_tokens = 0 if unknown is None else sum(int(measured[s].unigrams[unknown]) for s in SPLITS)
    report = {
        "documents": {
            "read": all_read.documents,
            "megabytes": all_read.bytes / 1e6,
            "usable": usable,
            "dropped": {
                "empty": all_read.empty,
                "malformed": all_read.malformed,
                "duplicates": all_read.duplicates,
                "left_out_by_weight": all_read.left_out,
                "fewer_than_two_sentences": sum(counts[split].dropped_documents for split in SPLITS),
            },
            "first_dropped": all_read.first,
        },
        "sentences": sum(counts[split].sentences for split in SPLITS),
        "tokens": tokens,
        "tokens_per_document": tokens / max(usable, 1),
        "unknown_token_share": unknown_tokens / max(tokens, 1),
        "dropped_tokens": sum(counts[split].dropped_tokens for split in SPLITS),
        "max_length": max_length,
        "padding_share": {split: measured[split].padding_share for split in SPLITS},
        "splits": {split: vars(counts[split]) for split in SPLITS},
        "sources": [
            source | {"read": vars(counted)} for source, counted in zip(work.plan.sources, read, strict=True)
        ],
        "documents_by_tokens": np.sum([block.document_sizes for block in blocks], axis=0).tolist(),
        "chunks_by_length": {split: measured[split].lengths.tolist() for split in SPLITS},
    }
    return report, measured["train"].unigrams


HIGH_UNKNOWN_SHARE = 0.01
"""Of text that a tokenizer was made for, less than a thousandth is unknown to it."""


def notes(report: dict[str, Any], tokenizer: dict[str, Any]) -> list[str]:
    """What whoever prepared should know, a sentence each.

    Args:
        tokenizer: the settings it was trained or taken by.
    """
    share = report["unknown_token_share"]
    said = [f"{share:.2%} of the tokens are unknown"]
    if share > HIGH_UNKNOWN_SHARE:
        said[0] += f": {_why_unknown(tokenizer)}"
    documents = report["documents"]
    for why in ("empty", "malformed"):
        if count := documents["dropped"].get(why):
            first = documents["first_dropped"][why]
            what = f"{why} document" if why == "empty" else f"{why} row"
            said.append(f"{count:,} {what}{'s' * (count > 1)} skipped, the first at {first}")
    return said


def _why_unknown(tokenizer: dict[str, Any]) -> str:
    if tokenizer["path"] is not None:
        return (
            f"the tokenizer of {tokenizer['path']} was not made for this text; write the tokenizer.path of "
            "one that was, or tokenizer.path=null to train one on it"
        )
    if tokenizer["kind"] == "wordpiece":
        return (
            "a word is unknown whole if one of its characters is rarer than tokenizer.character_coverage="
            f"{tokenizer['character_coverage']:g} allows, or if it is longer than 100 characters, as text "
            "without spaces is; write tokenizer.character_coverage=1 for the former, tokenizer=unigram or "
            "tokenizer=bpe for both"
        )
    return (
        f"characters rarer than tokenizer.character_coverage={tokenizer['character_coverage']:g} allows; "
        "write tokenizer.character_coverage=1, or tokenizer=bpe, which knows every character"
    )


def write_report(folder: Path, report: dict[str, Any], unigram_counts: NDArray[np.int64]) -> None:
    """Write what `make_report` gave: the figures, the page, and the counts."""
    (folder / REPORT).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / REPORT_PAGE).write_text(page(report), encoding="utf-8")
    np.save(folder / UNIGRAM_COUNTS, unigram_counts, allow_pickle=False)


class Measured(NamedTuple):
    """Figures of one split."""

    unigrams: NDArray[np.int64]
    """How often each token occurs, (vocabulary,)."""
    lengths: NDArray[np.int64]
    """Rows by length, in equal classes up to `max_length`."""
    padding_share: float


def measure(folder: Path, shards: list[ShardInfo], vocab_size: int, max_length: int) -> Measured:
    """Read the shards of one split once."""
    unigrams = np.zeros(vocab_size, np.int64)
    lengths = np.zeros(_LENGTH_CLASSES, np.int64)
    filled = 0
    for shard in shards:  # only one is mapped at a time
        columns = ShardColumns(folder / shard.file)
        unigrams += np.bincount(columns.tokens, minlength=vocab_size)
        rows = np.minimum(np.diff(columns.token_offsets) + SPECIAL_TOKENS_OF_A_PAIR, max_length)
        filled += int(rows.sum())
        lengths += np.bincount((rows - 1) * _LENGTH_CLASSES // max_length, minlength=_LENGTH_CLASSES)
    places = sum(shard.chunks for shard in shards) * max_length
    return Measured(unigrams, lengths, 1 - filled / max(places, 1))


# --- the page for people ------------------------------------------------------------------------------

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:56rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;margin:1rem 0}td,th{padding:.2rem .8rem;border-bottom:1px solid #ddd;"
    "text-align:right}td:first-child,th:first-child{text-align:left}img{max-width:100%}"
)


def page(report: dict[str, Any]) -> str:
    """The HTML page of a report, plots inside."""
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
    return "\n".join(parts) + "\n"


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
