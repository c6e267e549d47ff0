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
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from nystromformer.data import earlier, storage
from nystromformer.data.documents import SourceGone
from nystromformer.data.finish import complain_of_missing, finish
from nystromformer.data.making import make_blocks, make_tokenizer, split_rule
from nystromformer.data.plan import Plan, plan
from nystromformer.data.storage import PreparedData
from nystromformer.data.unfinished import Block, UnfinishedFolder
from nystromformer.settings import PrepareSettings
from nystromformer.settings.pretrain import ShardOf

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
        return earlier.given(settings, show=show_progress)
    try:
        job = plan(settings)
    except SourceGone as gone:
        if (found := earlier.made_by(settings)) is None:
            raise
        return _stand_in(found[0], str(gone))
    if not job.folder.exists():
        if out_of_reach := job.out_of_reach:
            found = earlier.made_by(settings)
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
    found = None if job.unfinished.path.exists() else earlier.made_by(job.settings)
    if found is not None and show:
        folder, manifest = found
        why = "; ".join(earlier.differences(manifest, job.record))
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
