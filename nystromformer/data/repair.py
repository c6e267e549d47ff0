"""Make anew what is missing or damaged in a prepared folder, and nothing else.

The manifest says what every file must be and which settings made it. Damaged shards are made again from
their blocks of the corpus; what does not come out with the manifest's checksum is not put there.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from nystromformer.data import earlier, storage
from nystromformer.data.making import make_blocks, make_tokenizer
from nystromformer.data.plan import Plan, plan
from nystromformer.data.preparation_page import write_page
from nystromformer.data.preparation_report import measure, write_report
from nystromformer.data.shards import ShardInfo
from nystromformer.data.splits import SPLITS, SplitRule
from nystromformer.data.unfinished import UnfinishedFolder
from nystromformer.errors import UserError
from nystromformer.files import sha256_of_file
from nystromformer.settings import PrepareSettings

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
            why = "; ".join(earlier.differences(manifest, job.record))
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
