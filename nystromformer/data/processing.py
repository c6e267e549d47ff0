"""One batch of documents to chunks: the part of a preparation that runs in worker processes.

Kept apart from `prepare`, and light to import, because every worker imports this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from tokenizers import Tokenizer

from nystromformer.data.documents import Document, in_validation, text_hash, without_surrogates
from nystromformer.data.segmentation import Chunks, Counts, Segmentation
from nystromformer.data.sentences import split_sentences
from nystromformer.data.splits import SPLITS

_BATCH_CHARACTERS = 2**20  # what a worker takes at once; the chunks do not depend on it


class Deduplicated:
    """Documents with the hash of their text, each text once; counts what it dropped."""

    def __init__(self, documents: Iterable[Document]) -> None:
        self._documents = documents
        self._seen: set[int] = set()  # 64 bits a document: about 0.7 GB for Wikipedia and BookCorpus
        self.read = 0
        self.duplicates = 0

    def __iter__(self) -> Iterator[tuple[str, int]]:
        for document in self._documents:
            self.read += 1
            text = without_surrogates(document.text)
            document_hash = text_hash(text)
            if document_hash in self._seen:
                self.duplicates += 1
                continue
            self._seen.add(document_hash)
            yield text, document_hash


def batches(documents: Iterable[tuple[str, int]]) -> Iterator[list[tuple[str, int]]]:
    """Group documents until a batch holds about `_BATCH_CHARACTERS`."""
    batch: list[tuple[str, int]] = []
    characters = 0
    for text, document_hash in documents:
        batch.append((text, document_hash))
        characters += len(text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


class Processed(NamedTuple):
    """A batch of documents after a worker: for each split its chunks and counts, and the chunks of
    the split's first usable document, which lead `chunks`."""

    documents: int
    bytes: int
    chunks: dict[str, Chunks]
    counts: dict[str, Counts]
    leading_chunks: dict[str, int]


@dataclass(frozen=True)
class _Worker:
    tokenizer: Tokenizer
    segmentation: Segmentation
    language: str
    validation_fraction: float


_worker: _Worker


def start_worker(
    tokenizer_json: str, segmentation: Segmentation, language: str, validation_fraction: float
) -> None:
    global _worker
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.encode_special_tokens = True  # "[MASK]" in a document is text, not a mask
    _worker = _Worker(tokenizer, segmentation, language, validation_fraction)


def process_batch(batch: list[tuple[str, int]]) -> Processed:
    """Documents → sentences → token ids → chunks."""
    sentences = [split_sentences(text, _worker.language) for text, _ in batch]
    encodings = iter(
        _worker.tokenizer.encode_batch_fast(
            [sentence for document in sentences for sentence in document], add_special_tokens=False
        )
    )
    parts: dict[str, list[Chunks]] = {split: [] for split in SPLITS}
    counts = {split: Counts() for split in SPLITS}
    for (_, document_hash), document in zip(batch, sentences, strict=True):
        token_ids = [next(encodings).ids for _ in document]
        chunks, document_counts = _worker.segmentation.chunk(token_ids, document_hash)
        split = "validation" if in_validation(document_hash, _worker.validation_fraction) else "train"
        counts[split].add(document_counts)
        if len(chunks):
            parts[split].append(chunks)
    return Processed(
        documents=len(batch),
        bytes=sum(len(text.encode()) for text, _ in batch),
        chunks={split: Chunks.concatenate(parts[split]) for split in SPLITS},
        counts=counts,
        leading_chunks={split: len(parts[split][0]) if parts[split] else 0 for split in SPLITS},
    )
