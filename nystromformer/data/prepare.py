"""Find the prepared corpus of some settings, or make it.

    plan        inputs opened, the folder's name
    tokenizer   taken, or trained on a sample of the whole corpus (`survey`)
    blocks      the corpus block by block through the workers, each block's shards written when it is whole
    finish      both splits filled, counts added up, report, manifest; the folder gets its name

One machine does all of it with `prepare`. Several share the third step: each calls `prepare_shard` for
its share of the blocks, and then one of them `prepare`, which finds what is there.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nystromformer.data import storage
from nystromformer.data.documents import SPLITS, SourceGone, SplitRule
from nystromformer.data.plan import Plan, differences, given, made_by, plan, settings_that_matter
from nystromformer.data.preparation_report import make_report, measure, notes, write_page, write_report
from nystromformer.data.storage import PreparedData, ShardInfo
from nystromformer.data.unfinished import Block, UnfinishedFolder, make_blocks, make_tokenizer, split_rule
from nystromformer.errors import UserError
from nystromformer.files import sha256_of_file
from nystromformer.settings import PrepareSettings
from nystromformer.settings.prepare import ShardOf

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


__all__ = ["PreparedData", "prepare", "prepare_shard"]


def prepare(settings: PrepareSettings, *, merge: bool = False, show_progress: bool = True) -> PreparedData:
    """Return the corpus as training examples on disk, made now unless the same settings made it before.

    Several processes may call this at once: one works, the others wait for it. What an earlier call left
    when it was killed is used, and so are other machines' shards; with `merge` the shards must all be
    there. The bytes are the same however it came about, and for any number of workers.

    Where data.prepared names a folder, that is returned. Where sources are gone, the folder that the same
    settings made while they were there is, and stderr says so.

    Raises UserError for impossible settings, inputs that cannot be read, a corpus too small for a training
    and a validation split, and a folder that cannot be written to.
    """
    prepared = _prepared(settings, merge, show_progress)
    if settings.data.verify:
        prepared.verify()
    return prepared


def _prepared(settings: PrepareSettings, merge: bool, show_progress: bool) -> PreparedData:
    if settings.data.prepared is not None:
        return given(settings, show=show_progress)
    try:
        job = plan(settings)
    except SourceGone as gone:
        if (found := made_by(settings)) is None:
            raise
        return _stand_in(found[0], str(gone))
    if not job.folder.exists():
        if out_of_reach := job.out_of_reach:
            found = made_by(settings)
            if found is not None:
                return _stand_in(found[0], f"the hub does not tell what {out_of_reach} is now")
        with storage.locked(job.folder):
            if not job.folder.exists():  # another process may have finished while this one waited
                _tell_of_earlier(job, show_progress)
                _make(job, merge, show_progress)
        if show_progress:
            for note in storage.read_manifest(job.folder)["report"]["notes"]:
                print(note, file=sys.stderr, flush=True)
    return PreparedData.open(job.folder)


def _stand_in(folder: Path, why: str) -> PreparedData:
    print(f"{why}\n{folder} was made by the same settings and is taken", file=sys.stderr, flush=True)
    return PreparedData.open(folder)


def _tell_of_earlier(job: Plan, show: bool) -> None:
    """Say why a folder that the same settings made does not do, where there is one."""
    found = None if job.unfinished.path.exists() else made_by(job.settings)
    if found is not None and show:
        folder, manifest = found
        why = "; ".join(differences(manifest, job.record))
        print(
            f"{folder} was made by the same settings, but {why}: preparing anew "
            f"(data.prepared={folder} takes it as it is)",
            file=sys.stderr,
            flush=True,
        )


def prepare_shard(settings: PrepareSettings, shard: ShardOf, *, show_progress: bool = True) -> list[Path]:
    """Make the blocks of one of several machines, and return their shards.

    Machine i of N makes every N-th block from block i - 1 on. All of them read the whole corpus, so a
    document that comes again in another machine's block is a duplicate here too, and the shards are those
    of a single machine. The machines need one `data.folder` that all of them see.
    """
    job = plan(settings)
    if job.folder.exists():
        return []
    folder = job.unfinished
    with folder.writing():
        with storage.locked(job.folder):
            tokenizer = make_tokenizer(job, folder, show_progress)
        with storage.locked(job.folder, f".shard-{shard.number}-of-{shard.of}"):
            folder.announce_shard(shard.number, shard.of)
            whole = folder.blocks()
            mine = _make_missing(job, folder, tokenizer, shard.has, whole, show_progress)
    return [folder.path / info.file for block in mine for info in block.shards.values() if info is not None]


def _make(job: Plan, merge: bool, show_progress: bool) -> None:
    folder = job.unfinished
    with folder.writing():
        if not (folder.path / storage.MANIFEST).exists():
            blocks = folder.blocks()
            if merge:
                complain_of_missing(folder, blocks)
            tokenizer = make_tokenizer(job, folder, show_progress)
            _make_missing(job, folder, tokenizer, lambda _: True, blocks, show_progress)
            finish(job, folder, tokenizer)
        # Between the manifest and the name only what does not belong there goes.
        folder.keep_only({storage.MANIFEST, *storage.read_manifest(folder.path)["files"]})
        os.rename(folder.path, job.folder)


def _make_missing(
    job: Plan,
    folder: UnfinishedFolder,
    tokenizer: PreTrainedTokenizerFast,
    wanted: Callable[[int], bool],
    whole: dict[int, Block],
    show_progress: bool,
) -> list[Block]:
    """Make the wanted blocks that are not whole; return all the wanted ones."""
    count = folder.block_count()
    if count is None or any(wanted(number) and number not in whole for number in range(count)):
        made, count = make_blocks(
            job,
            folder,
            tokenizer,
            lambda number: wanted(number) and number not in whole,
            rule=split_rule(job, folder),
            show_progress=show_progress,
        )
        whole.update((block.number, block) for block in made)
        folder.set_block_count(count)
    return [block for number, block in sorted(whole.items()) if wanted(number)]


# --- from whole blocks to a prepared corpus -------------------------------------------------------------


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


# --- what is missing or damaged, made anew --------------------------------------------------------------

_PREFIX = ".repair-"


def repair(folder: Path, settings: PrepareSettings, *, show_progress: bool = True) -> list[str]:
    """Make the damaged files of `folder` anew and return their names; no other file is touched.

    `settings` are those of the folder's manifest. Raises UserError when the corpus is no longer the one
    that the folder was made from, or a file does not come out as it was.
    """
    manifest = storage.read_manifest(folder)
    if settings.tokenizer.path is not None and (folder / storage.TOKENIZER).is_dir():
        settings.tokenizer.path = str(folder / storage.TOKENIZER)  # the one given then may be gone
    settings.data.malformed_rows = "skip"  # no manifest keeps it, and the rows are the same
    job = plan(settings)
    with storage.locked(folder):
        damaged = storage.damaged_files(folder, manifest)
        if damaged and _made_from_other(manifest["identity"], job.identity):
            why = "; ".join(differences(manifest, job.record))
            raise UserError(
                f"{folder} cannot be repaired: {why}; bring back what it was made from, or delete the folder "
                "and prepare it again with `nystromformer prepare`"
            )
        workshop = UnfinishedFolder(folder.with_name(_PREFIX + folder.name))
        workshop.discard()
        try:
            with workshop.writing():
                _repair_tokenizer(job, folder, workshop, damaged, manifest, show_progress)
                _repair_shards(job, folder, workshop, damaged, manifest, show_progress)
                _repair_figures(folder, workshop, damaged, manifest)
        finally:
            workshop.discard()
    return damaged


def _made_from_other(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether the folder was made from other files or settings.

    Other versions, of packages or of this project, may make the same: what they make is compared.
    """
    if before.get("identity_version") != now["identity_version"]:
        return False
    return {**before, "packages": None} != {**now, "packages": None}


def _repair_tokenizer(
    job: Plan,
    folder: Path,
    workshop: UnfinishedFolder,
    damaged: list[str],
    manifest: dict[str, Any],
    show_progress: bool,
) -> None:
    files = [name for name in damaged if name.startswith(f"{storage.TOKENIZER}/")]
    if files:
        make_tokenizer(job, workshop, show_progress)
        for name in files:
            _put(name, folder, workshop, manifest)
        shutil.rmtree(workshop.path / storage.TOKENIZER)


def _repair_shards(
    job: Plan,
    folder: Path,
    workshop: UnfinishedFolder,
    damaged: list[str],
    manifest: dict[str, Any],
    show_progress: bool,
) -> None:
    from nystromformer.data.tokenizer import load_tokenizer

    files = [name for name in damaged if name.endswith(".arrow")]
    if not files:
        return
    numbers = {int(Path(name).stem) for name in files}
    make_blocks(
        job,
        workshop,
        load_tokenizer(str(folder / storage.TOKENIZER)),
        numbers.__contains__,
        rule=SplitRule(manifest["validation_below"], manifest["moved_document"]),
        show_progress=show_progress,
    )
    for name in files:
        _put(name, folder, workshop, manifest)


def _repair_figures(
    folder: Path, workshop: UnfinishedFolder, damaged: list[str], manifest: dict[str, Any]
) -> None:
    report = manifest["report"]
    if storage.REPORT in damaged:
        write_report(workshop.path / storage.REPORT, report)
        _put(storage.REPORT, folder, workshop, manifest)
    if storage.REPORT_PAGE in damaged:
        write_page(workshop.path / storage.REPORT_PAGE, report)
        _put(storage.REPORT_PAGE, folder, workshop, manifest)
    if storage.UNIGRAM_COUNTS in damaged:
        shards = [ShardInfo(**shard) for shard in manifest["shards"][SPLITS[0]]]
        counted = measure(folder, shards, manifest["vocab_size"], report["max_length"]).unigrams
        np.save(workshop.path / storage.UNIGRAM_COUNTS, counted, allow_pickle=False)
        _put(storage.UNIGRAM_COUNTS, folder, workshop, manifest)


def _put(name: str, folder: Path, workshop: UnfinishedFolder, manifest: dict[str, Any]) -> None:
    """Move a file that was made again into its place, if it is what the manifest says."""
    made = workshop.path / name
    if not made.is_file() or sha256_of_file(made) != manifest["files"][name]["sha256"]:
        raise UserError(
            f"{folder / name} does not come out as it was: the corpus has changed, or a library; delete "
            f"the folder {folder} and prepare it again with `nystromformer prepare`"
        )
    (folder / name).parent.mkdir(exist_ok=True)
    os.replace(made, folder / name)
