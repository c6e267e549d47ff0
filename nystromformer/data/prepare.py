"""Find the prepared corpus of some settings, or make it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nystromformer.data import storage
from nystromformer.data.corpora import open_corpus, read_documents
from nystromformer.data.documents import Corpus, in_validation, text_hash, without_surrogates
from nystromformer.data.parallel import ordered_map
from nystromformer.data.processing import Deduplicated, batches, process_batch, start_worker
from nystromformer.data.progress import DocumentProgress
from nystromformer.data.segmentation import Segmentation
from nystromformer.data.splits import SPLITS, SplitWriter
from nystromformer.data.storage import PreparedData
from nystromformer.errors import UserError
from nystromformer.settings import PrepareSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["PreparedData", "prepare"]


def prepare(settings: PrepareSettings, *, show_progress: bool = True) -> PreparedData:
    """Return the corpus as training examples on disk, made now unless the same settings made it before.

    The folder's name holds a hash of all that changes the examples: the settings, the tokenizer and
    the size and time of each input. Several processes may call this at once: one works, the others
    wait for it. The bytes are the same for any number of workers.

    Raises UserError for impossible settings, inputs that cannot be read, a corpus too small for a
    training and a validation split, and a folder that cannot be written to.
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
    if not folder.exists():
        with storage.locked(folder):
            if not folder.exists():  # another process may have finished while this one waited
                with storage.unfinished(folder) as temporary:
                    _fill(temporary, settings, corpus, tokenizer, identity, digest, show_progress)
    return PreparedData.open(folder)


def _identity(
    settings: PrepareSettings, corpus: Corpus, tokenizer: PreTrainedTokenizerFast | None
) -> dict[str, Any]:
    """All that the examples on disk depend on, as JSON. What matters at load time only is not in it."""
    data = settings.data
    identity: dict[str, Any] = {
        "format_version": storage.FORMAT_VERSION,
        "corpus": data.corpus,
        "sources": [list(source) for source in corpus.sources],
        "max_documents": data.max_documents,
        "language": data.language,
        "validation_fraction": data.validation_fraction,
        "short_sequence_probability": data.short_sequence_probability,
        "max_length": settings.max_length,
        "seed": settings.seed,
    }
    if data.corpus == "text":
        identity["text_field"] = data.text_field
    if data.corpus == "bookcorpus_wikipedia":
        identity["bookcorpus_rows_per_document"] = data.bookcorpus_rows_per_document
    if tokenizer is None:
        training = asdict(settings.tokenizer)
        training.pop("path")
        identity["tokenizer"] = training
    else:
        from nystromformer.data.tokenizer import content_hash

        identity["tokenizer"] = content_hash(tokenizer)
    return identity


def _fill(
    folder: Path,
    settings: PrepareSettings,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerFast | None,
    identity: dict[str, Any],
    digest: str,
    show_progress: bool,
) -> None:
    """Write everything that belongs into the folder of a prepared corpus."""
    from nystromformer.data.tokenizer import content_hash, plain_backend, train_wordpiece

    data = settings.data
    if tokenizer is None:
        sample = _tokenizer_sample(corpus, settings, show_progress)
        tokenizer = train_wordpiece(sample, settings.tokenizer, max_length=settings.max_length)
    tokenizer.save_pretrained(str(folder / storage.TOKENIZER))

    segmentation = Segmentation(settings.max_length, data.short_sequence_probability, settings.seed)
    stream = Deduplicated(read_documents(corpus, data.max_documents))
    splits = SplitWriter(folder, len(tokenizer))
    with DocumentProgress("preparing", total_bytes=_total_bytes(corpus), show=show_progress) as progress:
        for result in ordered_map(
            process_batch,
            batches(stream),
            workers=data.workers,
            initializer=start_worker,
            initargs=(plain_backend(tokenizer), segmentation, data.language, data.validation_fraction),
        ):
            for split in SPLITS:
                splits.add(split, result.chunks[split], result.counts[split], result.leading_chunks[split])
            progress.advance(result.documents, result.bytes)
    shards, unigram_counts = splits.close()
    np.save(folder / storage.UNIGRAM_COUNTS, unigram_counts, allow_pickle=False)
    storage.write_manifest(
        folder,
        {
            "settings": _settings_that_matter(settings),
            "identity": identity,
            "identity_sha256": digest,
            "tokenizer_sha256": content_hash(tokenizer),
            "vocab_size": len(tokenizer),
            "sources": [source._asdict() for source in corpus.sources],
            "documents_read": stream.read,
            "duplicate_documents_dropped": stream.duplicates,
            "counts": {split: asdict(splits.counts[split]) for split in SPLITS},
            "shards": {split: [asdict(shard) for shard in shards[split]] for split in SPLITS},
        },
    )


def _settings_that_matter(settings: PrepareSettings) -> dict[str, Any]:
    """The settings without those that the files do not depend on: equal data, equal manifest."""
    content = asdict(settings)
    for name in ("folder", "workers", "streaming", "masking", "masking_probability"):
        del content["data"][name]
    return content


def _total_bytes(corpus: Corpus) -> int | None:
    sizes = [source.size for source in corpus.sources]
    return None if None in sizes else sum(size for size in sizes if size is not None)


def _tokenizer_sample(corpus: Corpus, settings: PrepareSettings, show_progress: bool) -> list[str]:
    """The first training documents of each source, about `sample_megabytes` in all.

    If all documents are validation's, as can be with a handful, they are the sample.
    """
    with DocumentProgress("sampling for the tokenizer", show=show_progress) as progress:
        for validation_fraction in (settings.data.validation_fraction, 0.0):
            if sample := _sample(corpus, settings, validation_fraction, progress):
                return sample
    return []


def _sample(
    corpus: Corpus, settings: PrepareSettings, validation_fraction: float, progress: DocumentProgress
) -> list[str]:
    """The sources share the sample equally; what a small one leaves goes to those after it."""
    budget = settings.tokenizer.sample_megabytes * 10**6
    documents_left = settings.data.max_documents
    sample: list[str] = []
    for number in range(len(corpus.sources)):
        share = budget // (len(corpus.sources) - number)
        for document in islice(corpus.documents(number), documents_left):
            if documents_left is not None:
                documents_left -= 1
            text = without_surrogates(document.text)
            if in_validation(text_hash(text), validation_fraction):
                continue
            size = len(text.encode())
            sample.append(text)
            progress.advance(1, size)
            budget -= size
            share -= size
            if share <= 0:
                break
    return sample
