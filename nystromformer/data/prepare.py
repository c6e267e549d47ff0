"""Find the prepared corpus of some settings, or make it; repair one.

    plan         inputs opened, the folder's name
    unfinished   the tokenizer taken, or trained on a sample of the whole corpus; then the corpus block by
                 block through the workers, each block's shards written when it is whole
    here         both splits filled, counts added up, report, manifest; the folder gets its name

One machine does all of it with `prepare`. Several share the blocks: each calls `prepare_shard` for its
share, and then one of them `prepare`, which finds what is there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nystromformer.data import storage
from nystromformer.data.documents import SPLITS, SourceGone, SplitRule
from nystromformer.data.plan import differences, given, made_by, plan, settings_that_matter
from nystromformer.data.preparation_report import make_report, measure, notes, write_report
from nystromformer.data.storage import PreparedData, say
from nystromformer.data.unfinished import Block, Unfinished, make_blocks, make_tokenizer, totals
from nystromformer.errors import UserError
from nystromformer.files import sha256_of_file
from nystromformer.settings import PrepareSettings
from nystromformer.settings.pretrain import ShardOf

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["PreparedData", "prepare", "prepare_shard", "repair"]


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
        if (out_of_reach := job.out_of_reach) and (found := made_by(settings)) is not None:
            return _stand_in(found[0], f"the hub does not tell what {out_of_reach} is now")
        with storage.locked(job.folder):
            if not job.folder.exists():  # another process may have finished while this one waited
                work = Unfinished.of(job, show_progress)
                _tell_of_earlier(work)
                _make(work, merge)
        if show_progress:
            for note in storage.read_manifest(job.folder)["report"]["notes"]:
                say(note)
    return PreparedData.open(job.folder)


def _stand_in(folder: Path, why: str) -> PreparedData:
    say(f"{why}\n{folder} was made by the same settings and is taken")
    return PreparedData.open(folder)


def _tell_of_earlier(work: Unfinished) -> None:
    """Say why a folder that the same settings made does not do, where there is one."""
    found = None if work.path.exists() else made_by(work.plan.settings)
    if found is not None and work.show_progress:
        folder, manifest = found
        why = "; ".join(differences(manifest, work.plan.record))
        say(
            f"{folder} was made by the same settings, but {why}: preparing anew "
            f"(data.prepared={folder} takes it as it is)"
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
    work = Unfinished.of(job, show_progress)
    with work.writing():
        with storage.locked(job.folder):
            tokenizer = make_tokenizer(work)
        with storage.locked(job.folder, f".shard-{shard.number}-of-{shard.of}"):
            work.announce_shard(shard.number, shard.of)
            mine = _make_missing(work, tokenizer, shard.has, work.blocks())
    return [work.path / info.file for block in mine for info in block.shards.values() if info is not None]


def _make(work: Unfinished, merge: bool) -> None:
    with work.writing():
        if not (work.path / storage.MANIFEST).exists():
            blocks = work.blocks()
            if merge:
                _complain_of_missing(work, blocks)
            tokenizer = make_tokenizer(work)
            _finish(work, tokenizer, _make_missing(work, tokenizer, lambda _: True, blocks))
        # Between the manifest and the name only what does not belong there goes.
        work.keep_only({storage.MANIFEST, *storage.read_manifest(work.path)["files"]})
        os.rename(work.path, work.plan.folder)


def _make_missing(
    work: Unfinished,
    tokenizer: PreTrainedTokenizerFast,
    wanted: Callable[[int], bool],
    whole: dict[int, Block],
) -> list[Block]:
    """Make the wanted blocks that are not whole; return all the wanted ones in order."""

    def missing(number: int) -> bool:
        return wanted(number) and number not in whole

    count = work.block_count()
    if count is None or any(map(missing, range(count))):
        made, count = make_blocks(work, tokenizer, missing, work.split_rule())
        whole = whole | {block.number: block for block in made}
        work.write_state("corpus.json", {"blocks": count})
    return [block for number, block in sorted(whole.items()) if wanted(number)]


def _complain_of_missing(work: Unfinished, blocks: dict[int, Block]) -> None:
    """Raise UserError, naming who is to make them, if blocks of the corpus are not there."""
    count, machines = work.block_count(), work.machines()
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
        f"merge=true: {reason} in {work.path}: run `nystromformer prepare` with the same settings and "
        f"{names} to the end, or without merge=true to make here what is missing"
    )


# --- from whole blocks to a prepared corpus -----------------------------------------------------------


def _finish(work: Unfinished, tokenizer: PreTrainedTokenizerFast, blocks: list[Block]) -> None:
    """Write all that belongs into the folder besides shards and tokenizer, the manifest last."""
    from nystromformer.data.tokenizer import content_hash

    settings, path = work.plan.settings, work.path
    rule = work.split_rule()
    blocks = _fill_both_splits(work, tokenizer, blocks, rule)
    shards = {
        split: [shard for block in blocks if (shard := block.shards[split]) is not None] for split in SPLITS
    }
    report, unigram_counts = make_report(work, blocks, shards, tokenizer)
    report["notes"] = notes(report, asdict(settings.tokenizer))
    write_report(path, report, unigram_counts)
    storage.write_manifest(
        path,
        {
            "settings": settings_that_matter(settings),
            "identity": work.plan.identity,
            "identity_sha256": work.plan.digest,
            "tokenizer_sha256": content_hash(tokenizer),
            "vocab_size": len(tokenizer),
            "sources": report["sources"],
            "documents_read": report["documents"]["read"],
            "duplicate_documents_dropped": report["documents"]["dropped"]["duplicates"],
            "validation_below": rule.validation_below,
            "moved_document": next((block.moved for block in blocks if block.moved is not None), None),
            "blocks": len(blocks),
            "counts": report["splits"],
            # Of each part of the corpus, which lie one part's after the other's.
            "training_chunks": np.sum([block.training_chunks for block in blocks], axis=0).tolist(),
            "report": report,
            "shards": {split: [asdict(shard) for shard in shards[split]] for split in SPLITS},
        },
        [shard for split in SPLITS for shard in shards[split]],
    )


def _fill_both_splits(
    work: Unfinished, tokenizer: PreTrainedTokenizerFast, blocks: list[Block], rule: SplitRule
) -> list[Block]:
    """See to it that no split stays empty: in a tiny corpus all hashes may fall on one side, and then its
    first usable document goes to the other.

    Raises UserError, and leaves nothing, when the corpus has not one usable document for each split.
    """
    counts, _ = totals(blocks)
    if all(counts[split].chunks for split in SPLITS):
        return blocks
    usable = sum(counts[split].documents for split in SPLITS)
    full = max(SPLITS, key=lambda split: counts[split].chunks)
    holder = next((block for block in blocks if block.first_document[full] is not None), None)
    if usable >= 2 and holder is not None:
        rule = replace(rule, moved=holder.first_document[full])
        quiet = replace(work, show_progress=False)
        made, _ = make_blocks(quiet, tokenizer, lambda number: number == holder.number, rule)
        again = [made[0] if block.number == holder.number else block for block in blocks]
        if all(counted.chunks for counted in totals(again)[0].values()):
            return again
    short = sum(counts[split].dropped_documents for split in SPLITS)
    work.discard()
    raise UserError(
        f"the corpus is too small: {usable} usable documents ({short} more have fewer than two sentences), "
        "where training and validation need one each: give data more documents of several sentences"
    )


# --- what is missing or damaged, made anew ------------------------------------------------------------


def repair(folder: Path, settings: PrepareSettings, *, show_progress: bool = True) -> list[str]:
    """Make the missing and damaged files of `folder` anew and return their names; no other is touched.

    `settings` are those of the folder's manifest, which says what every file must be: what does not come
    out with its checksum is not put there. Raises UserError for that, and when the corpus is no longer the
    one that the folder was made from.
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
        work = Unfinished(job, folder.with_name(f".repair-{folder.name}"), show_progress)
        work.discard()
        try:
            with work.writing():
                for name in _made_again(work, folder, damaged, manifest):
                    _put(work.path / name, folder, name, manifest["files"][name]["sha256"])
        finally:
            work.discard()
    return damaged


def _made_from_other(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether the folder was made from other files or settings.

    Other versions, of packages or of this project, may make the same: what they make is compared.
    """
    if before.get("identity_version") != now["identity_version"]:
        return False
    return {**before, "packages": None} != {**now, "packages": None}


def _made_again(
    work: Unfinished, folder: Path, damaged: list[str], manifest: dict[str, Any]
) -> Iterator[str]:
    """Make the damaged files in the folder of `work`: each name when it is made, and those first which
    later ones are made from."""
    from nystromformer.data.tokenizer import load_tokenizer

    if files := [name for name in damaged if name.startswith(f"{storage.TOKENIZER}/")]:
        make_tokenizer(work)
        yield from files
        shutil.rmtree(work.path / storage.TOKENIZER)
    if files := [name for name in damaged if name.endswith(".arrow")]:
        tokenizer = load_tokenizer(str(folder / storage.TOKENIZER))
        rule = SplitRule(manifest["validation_below"], manifest["moved_document"])
        make_blocks(work, tokenizer, {int(Path(name).stem) for name in files}.__contains__, rule)
        yield from files
    if files := [name for name in damaged if name in storage.REPORTS]:
        report = manifest["report"]
        shards = [storage.ShardInfo(**shard) for shard in manifest["shards"][SPLITS[0]]]
        counted = measure(folder, shards, manifest["vocab_size"], report["max_length"])
        write_report(work.path, report, counted.unigrams)
        yield from files


def _put(made: Path, folder: Path, name: str, sha256: str) -> None:
    """Move a file that was made again into its place, if it is what the manifest says."""
    if not made.is_file() or sha256_of_file(made) != sha256:
        raise UserError(
            f"{folder / name} does not come out as it was: the corpus has changed, or a library; delete "
            f"the folder {folder} and prepare it again with `nystromformer prepare`"
        )
    (folder / name).parent.mkdir(exist_ok=True)
    os.replace(made, folder / name)
