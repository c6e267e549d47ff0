"""What a preparation will make and where, from its settings: known before any document is read."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nystromformer.data import storage
from nystromformer.data.corpora import Corpus, open_corpus
from nystromformer.data.documents import SourceGone
from nystromformer.data.inputs import Inputs
from nystromformer.data.unfinished import UnfinishedFolder
from nystromformer.errors import UserError
from nystromformer.files import ContentHashes, sha256_of_json
from nystromformer.settings import PrepareSettings
from nystromformer.settings.identity import identity, nested
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
    def unfinished(self) -> UnfinishedFolder:
        return UnfinishedFolder.of(self.folder)

    @property
    def out_of_reach(self) -> str:
        """The repositories whose commit the hub did not tell."""
        return ", ".join(
            source.name for source in self.corpus.sources if not source.files and not source.certain
        )

    @property
    def record(self) -> dict[str, Any]:
        """What the manifest will say of it, see `earlier.differences`."""
        return {"identity": self.identity, "sources": self.sources}

    @property
    def sources(self) -> list[dict[str, Any]]:
        """The parts of the corpus and their inputs, for people and for comparing, see `differences`."""
        return [
            {"kind": part.settings.kind, "weight": part.settings.weight}
            | {"inputs": self.inputs.as_json(number)}
            for number, part in enumerate(self.corpus.parts)
        ]


def plan(settings: PrepareSettings) -> Plan:
    """Open the inputs and name the folder by a hash of all that changes the examples: the settings, the
    tokenizer, what each input holds, and the packages that split and encode it.

    Each file is read once for it; a small file in `data.folder` remembers what was found.

    Raises:
        SourceGone: an input, or the tokenizer, is not there.
        UserError: impossible settings, or inputs that cannot be read.
    """
    if complaints := list(settings.complaints()):
        raise UserError("; ".join(complaints))
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
