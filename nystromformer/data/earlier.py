"""Folders that were prepared before: taken where the sources are gone, and told apart where they changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf.errors import OmegaConfBaseException

from nystromformer.data import storage
from nystromformer.data.plan import settings_that_matter
from nystromformer.errors import UserError
from nystromformer.settings import PrepareSettings


def given(settings: PrepareSettings) -> storage.PreparedData:
    """The folder of data.prepared, whatever became of its sources.

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
    if settings.tokenizer.path is not None:
        from nystromformer.data.tokenizer import content_hash, load_tokenizer

        if content_hash(load_tokenizer(settings.tokenizer.path)) != manifest["tokenizer_sha256"]:
            raise UserError(
                f"data.prepared={settings.data.prepared!r} was made with another tokenizer than that of "
                f"{settings.tokenizer.path!r}: its ids would mean other words; write tokenizer.path=null and "
                "init=scratch, or prepare it anew"
            )
    return prepared


def made_by(settings: PrepareSettings) -> tuple[Path, dict[str, Any]] | None:
    """The newest folder that the same settings made, with its manifest, whatever its sources held then."""
    from nystromformer.settings.compose import prepare_settings_from

    wanted = settings_that_matter(settings)
    found = []
    for path in Path(settings.data.folder).glob(f"*/{storage.MANIFEST}"):
        try:
            manifest = storage.read_manifest(path.parent)
            if settings_that_matter(prepare_settings_from(manifest["settings"])) == wanted:
                found.append((path.stat().st_mtime_ns, path.parent, manifest))
        except (UserError, OmegaConfBaseException, OSError, KeyError, TypeError, ValueError):
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
