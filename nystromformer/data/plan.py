"""What a preparation will make and where, from its settings: known before any document is read.

It is known by what its inputs hold, not by where files lie or how old they are. Folders that were prepared
before are taken where the sources are gone, and told apart where they changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nystromformer.data import storage
from nystromformer.data.corpora import Corpus, open_corpus
from nystromformer.data.documents import Source, SourceGone
from nystromformer.data.storage import say
from nystromformer.errors import UserError
from nystromformer.files import ContentHashes, sha256_of_json, stamp
from nystromformer.settings import PrepareSettings
from nystromformer.settings.identity import identity, nested, read_stored
from nystromformer.settings.schema import Role

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


IDENTITY_VERSION = 3
"""1 and 2 knew files by their size and modification time."""
PREPARATION = "preparation"
"""What a setting is of that decides what is on disk, and not only what training makes of it."""
_HASHES = ".content_hashes.json"


@dataclass(frozen=True)
class Plan:
    """Settings, opened corpus and given tokenizer of one preparation, and the folder it makes."""

    settings: PrepareSettings
    corpus: Corpus
    inputs: Inputs
    """The corpus' inputs as they were when the preparation started."""
    given_tokenizer: PreTrainedTokenizerFast | None
    """The one of tokenizer.path; None where one is to be trained."""
    identity: dict[str, Any]
    digest: str
    folder: Path

    @property
    def out_of_reach(self) -> str:
        """The repositories whose commit the hub did not tell."""
        return ", ".join(
            source.name for source in self.corpus.sources if not source.files and not source.certain
        )

    @property
    def record(self) -> dict[str, Any]:
        """What the manifest will say of it, see `differences`."""
        return {"identity": self.identity, "sources": self.sources}

    @property
    def sources(self) -> list[dict[str, Any]]:
        """The parts of the corpus and their inputs, for people and for comparing, see `differences`."""
        return [
            {"kind": part.settings.kind, "weight": part.settings.weight, "inputs": inputs}
            for part, inputs in zip(self.corpus.parts, self.inputs.of_part, strict=True)
        ]


def plan(settings: PrepareSettings) -> Plan:
    """Open the inputs and name the folder by a hash of all that changes the examples: the settings, the
    tokenizer, what each input holds, and the packages that split and encode it.

    Each file is read once for it; a small file in `data.folder` remembers what was found.

    Raises:
        SourceGone: an input, or the tokenizer, is not there.
        UserError: impossible settings, or inputs that cannot be read.
    """
    settings.check()
    corpus = open_corpus(settings.data)
    tokenizer = None if settings.tokenizer.path is None else _given_tokenizer(settings.tokenizer.path)
    inputs = Inputs(corpus, ContentHashes(Path(settings.data.folder) / _HASHES))
    found = _identity(settings, corpus, inputs, tokenizer)
    digest = sha256_of_json(found)
    folder = Path(settings.data.folder) / f"{settings.data.corpus}-{digest[:12]}"
    return Plan(settings, corpus, inputs, tokenizer, found, digest, folder)


def _given_tokenizer(path: str) -> PreTrainedTokenizerFast:
    from nystromformer.data.tokenizer import load_tokenizer

    try:
        return load_tokenizer(path)
    except UserError as error:
        if Path(path).exists():
            raise
        raise SourceGone(str(error)) from error


def _identity(
    settings: PrepareSettings, corpus: Corpus, inputs: Inputs, tokenizer: PreTrainedTokenizerFast | None
) -> dict[str, Any]:
    """All that the examples on disk depend on, as JSON. What matters at load time only is not in it."""
    data = identity(settings.data, of=PREPARATION, roles={Role.RESULT})
    exactly, share = data.pop("validation_documents"), data.pop("validation_fraction")
    found: dict[str, Any] = {
        "format_version": storage.FORMAT_VERSION,
        "identity_version": IDENTITY_VERSION,
        "parts": [identity(part.settings, roles={Role.RESULT}) for part in corpus.parts],
        "inputs": inputs.identity,
        **data,
        "validation": exactly or share,
        "max_length": settings.max_length,
        "seed": settings.seed,
    }
    packages = ["sentencex", "tokenizers"]  # the splitter of sentences, and what encodes them
    if tokenizer is None:
        found["tokenizer"] = identity(settings.tokenizer, roles={Role.RESULT})
        if settings.tokenizer.kind == "unigram":
            packages.append("sentencepiece")
    else:
        from nystromformer.data.tokenizer import content_hash

        found["tokenizer"] = content_hash(tokenizer)
    found["packages"] = {name: _version(name) for name in packages}
    return found


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # its use will say so
        return "absent"


def settings_that_matter(settings: PrepareSettings) -> dict[str, Any]:
    """The settings without those that the files do not depend on: equal data, equal manifest."""
    return nested(identity(settings, of=PREPARATION))


# --- what the inputs hold -----------------------------------------------------------------------------

_WORTH_SAYING = 4 * 10**9  # bytes; fewer are read in seconds


class Inputs:
    """The inputs of a corpus as they are now, every file read once unless `hashes` remembers it.

    `of_part` tells those of each part, files or repositories of the hub, as JSON: `name`, for people, as a
    renamed file is the same input; `size` in bytes of text, None where only reading everything would tell;
    `content`, the SHA-256 of a file's bytes, or what the hub was asked for and the commit it answered with;
    `format`, what decides how the bytes are read.

    Raises UserError for a file that cannot be read.
    """

    def __init__(self, corpus: Corpus, hashes: ContentHashes) -> None:
        sources = [part.sources for part in corpus.parts]
        self._hashes = hashes
        # Before their content: what is written to while it is read is seen to have changed.
        self._stamps = {path: _stamp(path) for part in sources for source in part for path in source.files}
        self._contents = dict(zip(self._stamps, _read(list(self._stamps), hashes), strict=True))
        self.of_part = [[found for source in part for found in self._of(source)] for part in sources]

    @property
    def identity(self) -> list[list[list[str]]]:
        """What each part's documents depend on: content and format of its inputs, in order."""
        return [[[each["format"], each["content"]] for each in part] for part in self.of_part]

    def complain_if_changed(self) -> None:
        """Raise UserError, naming the file, if one no longer holds what it held at first.

        One that was only touched, or copied over by the same bytes, has not changed.
        """
        for path, before in self._stamps.items():
            now = _stamp(path)
            if now != before:
                if self._hashes.of(path) != self._contents[path]:
                    raise UserError(
                        f"{path} changed while it was prepared: give the same command again, which starts "
                        "from the beginning"
                    )
                self._stamps[path] = now

    def _of(self, source: Source) -> list[dict[str, Any]]:
        found = {"name": source.name, "size": source.size, "content": source.version, "format": source.format}
        if not source.files:
            return [found]
        if len(source.files) == 1:
            return [found | {"content": self._contents[source.files[0]]}]
        return [
            found
            | {"name": f"{source.name}/{path.name}", "size": path.stat().st_size}
            | {"content": self._contents[path]}
            for path in source.files
        ]


def _read(paths: list[Path], hashes: ContentHashes) -> list[str]:
    try:
        if (unread := hashes.unread(paths)) > _WORTH_SAYING:
            say(f"reading {unread / 1e9:.1f} GB once, to know the sources by what they hold")
        return hashes.of_all(paths)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}): make it readable") from error


def _stamp(path: Path) -> list[int | str]:
    try:
        return stamp(path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): bring it back, and give the same command again"
        ) from error


# --- folders that were prepared before ----------------------------------------------------------------

_FILES_NAMED = 5


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
        say(f"{folder} holds rows of at most {length} tokens, and model.max_length={settings.max_length}")
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
    return max(found, key=lambda each: each[0])[1:] if found else None


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
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
    more = len(words) - _FILES_NAMED
    return [*words[:_FILES_NAMED], f"{more} more"] if more > 0 else words
