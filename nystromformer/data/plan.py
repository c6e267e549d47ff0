"""What a preparation will make and where, from its settings: known before any document is read."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nystromformer.data import storage
from nystromformer.data.corpora import Corpus, open_corpus
from nystromformer.data.documents import Source
from nystromformer.data.unfinished import UnfinishedFolder
from nystromformer.errors import UserError
from nystromformer.settings import PrepareSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Plan:
    """Settings, opened corpus and given tokenizer of one preparation, and the folder it makes."""

    settings: PrepareSettings
    corpus: Corpus
    sources: list[Source]
    """The corpus' inputs as they were when the preparation started."""
    given_tokenizer: PreTrainedTokenizerFast | None
    """The one of tokenizer.path; None where one is to be trained."""
    identity: dict[str, Any]
    digest: str
    folder: Path

    @property
    def unfinished(self) -> UnfinishedFolder:
        return UnfinishedFolder.of(self.folder)

    def complain_of_changed_sources(self) -> None:
        """Raise UserError if an input changed since the preparation started."""
        for before, now in zip(self.sources, self.corpus.sources, strict=True):
            if before != now:
                raise UserError(
                    f"{now.name} changed while it was prepared: give the same command again, which starts "
                    "from the beginning"
                )


def plan(settings: PrepareSettings) -> Plan:
    """Open the inputs and name the folder by a hash of all that changes the examples: the settings, the
    tokenizer, and the size and time of each input.

    Raises UserError for impossible settings and for inputs that are missing.
    """
    if complaints := list(settings.complaints()):
        raise UserError("; ".join(complaints))
    corpus = open_corpus(settings.data)
    tokenizer = None
    if settings.tokenizer.path is not None:
        from nystromformer.data.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(settings.tokenizer.path)
    identity = _identity(settings, corpus, tokenizer)
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    folder = Path(settings.data.folder) / f"{settings.data.corpus}-{digest[:12]}"
    return Plan(settings, corpus, corpus.sources, tokenizer, identity, digest, folder)


def _identity(
    settings: PrepareSettings, corpus: Corpus, tokenizer: PreTrainedTokenizerFast | None
) -> dict[str, Any]:
    """All that the examples on disk depend on, as JSON. What matters at load time only is not in it."""
    data = settings.data
    identity: dict[str, Any] = {
        "format_version": storage.FORMAT_VERSION,
        "parts": [part.identity for part in corpus.parts],
        "max_documents": data.max_documents,
        "language": data.language,
        "validation": data.validation_documents or data.validation_fraction,
        "short_sequence_probability": data.short_sequence_probability,
        "shard_megabytes": data.shard_megabytes,
        "max_length": settings.max_length,
        "seed": settings.seed,
    }
    if tokenizer is None:
        training = asdict(settings.tokenizer)
        training.pop("path")
        identity["tokenizer"] = training
    else:
        from nystromformer.data.tokenizer import content_hash

        identity["tokenizer"] = content_hash(tokenizer)
    return identity


def settings_that_matter(settings: PrepareSettings) -> dict[str, Any]:
    """The settings without those that the files do not depend on: equal data, equal manifest."""
    content = asdict(settings)
    for name in ("folder", "workers", "streaming", "verify", "masking", "masking_probability"):
        del content["data"][name]
    return content
