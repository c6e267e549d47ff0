"""What a run was trained on and began from: kept in its folder by what they hold, compared when it goes on.

    runs/NAME/data.json    the prepared folder's name, the hash of all that is read of it, what it was made
                           from, and the hash of the checkpoint that gave the first weights

A corpus, a tokenizer or a package that changed between two sessions of a run is found here, and named.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from nystromformer.data.plan import differences, plan
from nystromformer.data.prepare import prepare
from nystromformer.data.storage import PreparedData, read_manifest
from nystromformer.errors import UserError
from nystromformer.files import write_atomically
from nystromformer.model.source import content_of_checkpoint
from nystromformer.settings import PretrainSettings
from nystromformer.training.checkpoint import saved_steps
from nystromformer.training.run_folder import RunFolder

_RECORD = "data.json"


def prepared_for(folder: RunFolder, settings: PretrainSettings, *, show_progress: bool) -> PreparedData:
    """The data of a run, made now if they are missing; of a run that goes on, those it was trained on.

    Raises:
        UserError: the data cannot be prepared, or are not those that the run's checkpoints were trained
            on. What can be known of that before a preparation of hours is known before it.
    """
    record = _record(folder)
    if record is not None:
        _check_sources(folder, record, settings)
    prepared = prepare(settings.preparation, show_progress=show_progress)
    if record is not None:
        _check_content(folder, record, prepared, settings)
    else:
        _check_name(folder, prepared, settings)
    return prepared


def is_over_on_its_data(folder: RunFolder, settings: PretrainSettings) -> bool:
    """Whether a run has its report and its corpus is what it was trained on; nothing is prepared for it.

    A corpus that is not there to compare is taken for the one it was, which is said.
    """
    record = _record(folder)
    if not folder.report.exists() or record is None:
        return False
    try:
        now = plan(settings.preparation)
    except UserError as error:
        print(f"{folder.path} is read as it is: its corpus is not there to compare ({error})", flush=True)
        return True
    return record["identity"] == now.identity


def changed_start(folder: RunFolder, settings: PretrainSettings) -> str | None:
    """That the checkpoint a run began from holds other weights today, in words; None where it does not."""
    record = _record(folder)
    if record is None or settings.init.source == "scratch" or record.get("start") is None:
        return None
    now = content_of_checkpoint(str(settings.init.path))
    if now is None or now == record["start"]:
        return None
    return f"{folder.path} began from {settings.init.path}, which holds other weights now"


def remember(folder: RunFolder, prepared: PreparedData, settings: PretrainSettings) -> None:
    """Record the data and the start of a run, unless its checkpoints have their record already.

    Raises UserError where the disk takes no file.
    """
    if _record(folder) is None:
        manifest = prepared.manifest
        sources = [
            {name: part[name] for name in ("kind", "inputs") if name in part} for part in manifest["sources"]
        ]
        record = {
            "folder": prepared.folder.name,
            "content": prepared.content,
            "identity": manifest["identity"],
            "sources": sources,
        }
        if settings.init.source != "scratch":
            record["start"] = content_of_checkpoint(str(settings.init.path))
        path = folder.path / _RECORD
        try:
            write_atomically(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        except OSError as error:
            raise UserError(
                f"cannot write {path} ({error.strerror}): free space there, then give the same command again"
            ) from None


def _record(folder: RunFolder) -> dict[str, Any] | None:
    """What the run's checkpoints were trained on; None where there is no checkpoint, or no record."""
    if not saved_steps(folder.checkpoints):
        return None
    path = folder.path / _RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if {"folder", "content", "identity", "sources"} <= record.keys():
            return record
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError):
        pass
    raise UserError(
        f"{path} is damaged, which says what data the run was trained on: bring it back, or delete it "
        "to go on with data that nobody compares"
    )


def _check_sources(folder: RunFolder, record: dict[str, Any], settings: PretrainSettings) -> None:
    if settings.data.prepared is not None:
        return
    try:
        now = plan(settings.preparation)
    except UserError:
        return  # `prepare` will say it, or find the folder that was made while they were there
    before = record["identity"]
    if before.get("identity_version") != now.identity["identity_version"]:
        return
    if any(before[name] != now.identity[name] for name in ("inputs", "tokenizer")):
        _refuse(folder, record["folder"], differences(record, now.record), settings)


def _check_content(
    folder: RunFolder, record: dict[str, Any], prepared: PreparedData, settings: PretrainSettings
) -> None:
    if prepared.content != record["content"]:
        why = differences(record, prepared.manifest) or ["what was prepared from them differs"]
        _refuse(folder, record["folder"], why, settings)


def _check_name(folder: RunFolder, prepared: PreparedData, settings: PretrainSettings) -> None:
    """For a run that began before there was a record: its checkpoints know the folder's name alone."""
    name = _name_in_checkpoint(folder)
    if name is None or name == prepared.folder.name:
        return
    before = _where(name, settings)
    if before is None:
        print(
            f"{folder.path} was trained on {name}, which is no longer there to compare: it goes on with "
            f"{prepared.folder.name}, made by the same settings",
            file=sys.stderr,
        )
    elif PreparedData(before, read_manifest(before)).content != prepared.content:
        why = differences(read_manifest(before), prepared.manifest)
        _refuse(folder, name, why, settings)


def _name_in_checkpoint(folder: RunFolder) -> str | None:
    for step in reversed(saved_steps(folder.checkpoints)):
        try:
            state = json.loads((folder.checkpoints / f"step-{step}" / "state.json").read_text())
            return state.get("data") or None
        except (OSError, ValueError, AttributeError):  # a damaged checkpoint
            continue
    return None


def _where(name: str, settings: PretrainSettings) -> Path | None:
    """The prepared folder of that name, where it is still there."""
    folder = Path(settings.data.folder) / name
    return folder if (folder / "manifest.json").is_file() else None


def _refuse(folder: RunFolder, name: str, why: list[str], settings: PretrainSettings) -> None:
    before = _where(name, settings)
    take = f"write data.prepared={before}, " if before is not None else ""
    raise UserError(
        f"{folder.path} was trained on {name} and would go on with other data: {'; '.join(why)}; bring back "
        f"what it was, {take}or write name=OTHER for a new run"
    )
