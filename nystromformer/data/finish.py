"""From whole blocks to a prepared corpus: both splits filled, counts added up, report and manifest."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from nystromformer.data import storage
from nystromformer.data.making import make_blocks, split_rule
from nystromformer.data.plan import Plan, settings_that_matter
from nystromformer.data.preparation_page import write_page
from nystromformer.data.preparation_report import make_report, notes, write_report
from nystromformer.data.shards import ShardInfo
from nystromformer.data.splits import SPLITS, SplitRule
from nystromformer.data.unfinished import Block, UnfinishedFolder
from nystromformer.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def finish(job: Plan, folder: UnfinishedFolder, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write all that belongs into the folder besides shards and tokenizer, the manifest last."""
    from nystromformer.data.tokenizer import content_hash

    blocks = [block for _, block in sorted(folder.blocks().items())]
    below = split_rule(job, folder).validation_below
    blocks = _fill_both_splits(job, folder, tokenizer, blocks, below)
    shards = {split: shards_of(blocks, split) for split in SPLITS}
    report, unigram_counts = make_report(job, folder.path, blocks, shards, tokenizer)
    np.save(folder.path / storage.UNIGRAM_COUNTS, unigram_counts, allow_pickle=False)
    report["notes"] = notes(report, asdict(job.settings.tokenizer))
    write_report(folder.path / storage.REPORT, report)
    write_page(folder.path / storage.REPORT_PAGE, report)
    moved = next((block.moved for block in blocks if block.moved is not None), None)
    storage.write_manifest(
        folder.path,
        {
            "settings": settings_that_matter(job.settings),
            "identity": job.identity,
            "identity_sha256": job.digest,
            "tokenizer_sha256": content_hash(tokenizer),
            "vocab_size": len(tokenizer),
            "sources": report["sources"],
            "documents_read": report["documents"]["read"],
            "duplicate_documents_dropped": report["documents"]["dropped"]["duplicates"],
            "validation_below": below,
            "moved_document": moved,
            "blocks": len(blocks),
            "counts": report["splits"],
            "report": report,
            "shards": {split: [asdict(shard) for shard in shards[split]] for split in SPLITS},
        },
        [shard for split in SPLITS for shard in shards[split]],
    )


def shards_of(blocks: list[Block], split: str) -> list[ShardInfo]:
    """The shards of a split, in the order of the corpus."""
    return [shard for block in blocks if (shard := block.shards[split]) is not None]


def complain_of_missing(folder: UnfinishedFolder, blocks: dict[int, Block]) -> None:
    """Raise UserError, naming who is to make them, if blocks of the corpus are not there."""
    count, machines = folder.block_count(), folder.machines()
    missing = [number for number in range(count or 0) if number not in blocks]
    if count is not None and not missing:
        return
    if count is None:
        reason = "no shard is complete"
    else:
        numbers = ", ".join(map(str, missing[:10])) + (", …" if len(missing) > 10 else "")
        reason = f"blocks {numbers} of {count} are missing"
    who = sorted({number % machines + 1 for number in missing}) if machines else []
    names = ", ".join(f"shard={number}/{machines}" for number in who[:10]) or "shard=I/N for each machine"
    raise UserError(
        f"merge=true: {reason} in {folder.path}: run `nystromformer prepare` with the same settings and "
        f"{names} to the end, or without merge=true to make here what is missing"
    )


def _fill_both_splits(
    job: Plan,
    folder: UnfinishedFolder,
    tokenizer: PreTrainedTokenizerFast,
    blocks: list[Block],
    below: int,
) -> list[Block]:
    """See to it that no split stays empty: in a tiny corpus all hashes may fall on one side, and then its
    first usable document goes to the other.

    Raises UserError, and leaves nothing, when the corpus has not one usable document for each split.
    """
    chunks = {split: sum(block.counts[split].chunks for block in blocks) for split in SPLITS}
    if all(chunks.values()):
        return blocks
    usable = sum(block.counts[split].documents for block in blocks for split in SPLITS)
    full = max(SPLITS, key=lambda split: chunks[split])
    holder = next((block for block in blocks if block.first_document[full] is not None), None)
    if usable >= 2 and holder is not None:
        rule = SplitRule(below, moved=holder.first_document[full])
        made, _ = make_blocks(
            job, folder, tokenizer, lambda number: number == holder.number, rule=rule, show_progress=False
        )
        again = [made[0] if block.number == holder.number else block for block in blocks]
        if all(sum(block.counts[split].chunks for block in again) for split in SPLITS):
            return again
    short = sum(block.counts[split].dropped_documents for block in blocks for split in SPLITS)
    folder.discard()
    raise UserError(
        f"the corpus is too small: {usable} usable documents ({short} more have fewer than two sentences), "
        "where training and validation need one each: give data more documents of several sentences"
    )
