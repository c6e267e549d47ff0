"""Folders that were prepared before: taken where the sources are gone, and told apart where they changed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from nystromformer.data import storage
from nystromformer.data.plan import settings_that_matter
from nystromformer.errors import UserError
from nystromformer.settings import PrepareSettings
from nystromformer.settings.identity import read_stored


def given(settings: PrepareSettings, *, show: bool = True) -> storage.PreparedData:
    """The folder of data.prepared, whatever became of its sources.

    Args:
        show: say on stderr where its rows are shorter than they could be.

    Raises UserError when it is none, or when its rows or its tokenizer are not those that the other
    settings ask for.
    """
    folder = Path(str(settings.data.prepared)).expanduser()
    if not (folder / storage.MANIFEST).is_file():
        within = sorted(path.parent.name for path in folder.glob(f"*/{storage.MANIFEST}"))
        where = f"write one of those in it: {', '.join(within)}" if within else (
            "write the folder that `nystromformer prepare` printed"
        )  # fmt: skip
        raise UserError(f"data.prepared={settings.data.prepared!r} is no prepared folder: {where}")
    prepared = storage.PreparedData.open(folder)
    manifest = prepared.manifest
    if (length := manifest["report"]["max_length"]) > settings.max_length:
        raise UserError(
            f"data.prepared={settings.data.prepared!r} holds rows of up to {length} tokens, and "
            f"model.max_length={settings.max_length}: write model.max_length={length}, or prepare it anew"
        )
    if length < settings.max_length and show:
        print(
            f"{folder} holds rows of at most {length} tokens, and model.max_length={settings.max_length}",
            file=sys.stderr,
            flush=True,
        )
    if settings.tokenizer.path is not None:
        _check_tokenizer(settings.tokenizer.path, prepared)
    return prepared


def _check_tokenizer(path: str, prepared: storage.PreparedData) -> None:
    """Raise UserError where `path` holds another tokenizer than the one of the folder."""
    from nystromformer.data.tokenizer import content_hash, load_tokenizer

    try:
        found = content_hash(load_tokenizer(path))
    except UserError:
        if prepared.manifest["settings"]["tokenizer"]["path"] == path:
            return  # gone, or out of reach, and the folder's own is a copy of it
        raise
    if found != prepared.manifest["tokenizer_sha256"]:
        raise UserError(
            f"data.prepared={str(prepared.folder)!r} was made with another tokenizer than that of {path!r}: "
            "its ids would mean other words; write tokenizer.path=null and init=scratch, or prepare it anew"
        )


def made_by(settings: PrepareSettings) -> tuple[Path, dict[str, Any]] | None:
    """The newest folder that the same settings made, with its manifest, whatever its sources held then."""
    wanted = settings_that_matter(settings)
    found = []
    for path in Path(settings.data.folder).glob(f"*/{storage.MANIFEST}"):
        try:
            manifest = storage.read_manifest(path.parent)
            made = read_stored(PrepareSettings, manifest["settings"], str(path), "prepare it anew")
            if settings_that_matter(made) == wanted:
                found.append((path.stat().st_mtime_ns, path.parent, manifest))
        except (UserError, OSError, KeyError, TypeError, ValueError):
            continue  # damaged, or of a version with other settings
    if not found:
        return None
    _, folder, manifest = max(found, key=lambda each: each[0])
    return folder, manifest


def differences(
    before: dict[str, Any],
    now: dict[str, Any],
) -> list[str]:
    """What made two preparations two, in words, the files by name.

    Args:
        before, now: `identity` and `sources` of a manifest or a plan.
    """
    old, new = before["identity"], now["identity"]
    if old.get("identity_version") != new.get("identity_version"):
        return ["an earlier version made it, which knew files by their times"]
    found = _changed_inputs(_contents(before["sources"]), _contents(now["sources"]))
    if old["inputs"] != new["inputs"] and not found:
        found.append("the order of the files has changed")
    if old["tokenizer"] != new["tokenizer"]:
        found.append("the tokenizer has changed")
    packages = old["packages"] | new["packages"]
    found += [
        f"{name} is {new['packages'].get(name)} and was {old['packages'].get(name)}"
        for name in packages
        if old["packages"].get(name) != new["packages"].get(name)
    ]
    settings = (old.keys() | new.keys()) - {"inputs", "tokenizer", "packages"}
    changed = sorted(name for name in settings if old.get(name) != new.get(name))
    return found + [f"{name} is another" for name in changed]


def _contents(sources: list[dict[str, Any]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for source in sources:
        for each in source["inputs"]:
            found.setdefault(each["name"], []).append(each["content"])
    return found


def _changed_inputs(before: dict[str, list[str]], now: dict[str, list[str]]) -> list[str]:
    known = {content for contents in before.values() for content in contents}
    kept = {content for contents in now.values() for content in contents}
    words = [f"{name} has changed" for name in now if name in before and before[name] != now[name]]
    words += [f"{name} is new" for name in now if name not in before and not known.issuperset(now[name])]
    words += [f"{name} is gone" for name in before if name not in now and not kept.issuperset(before[name])]
    return (
        words if len(words) <= _FILES_NAMED else [*words[:_FILES_NAMED], f"{len(words) - _FILES_NAMED} more"]
    )


_FILES_NAMED = 5
