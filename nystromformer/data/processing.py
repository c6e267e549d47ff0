"""What happens to a batch of documents in worker processes.

Kept apart from `prepare`, and light to import, because every worker imports this module.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from nystromformer.data import stateless_random as random
from nystromformer.data.blocks import Batch, ReadCounts
from nystromformer.data.segmentation import Chunks, Counts, Segmentation
from nystromformer.data.sentences import split_sentences
from nystromformer.data.splits import SPLITS, SplitRule


class Processed(NamedTuple):
    """A batch of documents after a worker."""

    block: int
    ends_block: bool
    read: list[ReadCounts]
    bytes: int
    chunks: dict[str, Chunks]
    counts: dict[str, Counts]
    first_document: dict[str, int | None]
    """The hash of each split's first document that gave a chunk."""
    document_tokens: NDArray[np.int64]
    """Tokens of each document, (documents,)."""


@dataclass(frozen=True)
class Work:
    """All that a worker needs to know besides the documents."""

    tokenizer_json: str
    segmentation: Segmentation
    language: str
    split: SplitRule


@dataclass
class _Worker:
    work: Work
    tokenizer: Tokenizer = field(init=False)

    def __post_init__(self) -> None:
        self.tokenizer = Tokenizer.from_str(self.work.tokenizer_json)
        self.tokenizer.encode_special_tokens = True  # "[MASK]" in a document is text, not a mask


_worker: _Worker


def start_worker(work: Work) -> None:
    """Once in each process, before `process_batch`."""
    global _worker
    _worker = _Worker(work)


def process_batch(batch: Batch) -> Processed:
    """Documents → sentences → token ids → chunks."""
    work = _worker.work
    sentences = [split_sentences(document.text, work.language) for document in batch.documents]
    encodings = iter(
        _worker.tokenizer.encode_batch_fast(
            [sentence for document in sentences for sentence in document], add_special_tokens=False
        )
    )
    parts: dict[str, list[Chunks]] = {split: [] for split in SPLITS}
    counts = {split: Counts() for split in SPLITS}
    first_document: dict[str, int | None] = dict.fromkeys(SPLITS)
    document_tokens = []
    for (_, document_hash, copies), document in zip(batch.documents, sentences, strict=True):
        token_ids = [next(encodings).ids for _ in document]
        document_tokens.append(sum(map(len, token_ids)))
        split = work.split.of(document_hash)
        for copy in range(copies if split == "train" else 1):
            chunks, document_counts = work.segmentation.chunk(token_ids, _key(document_hash, copy))
            counts[split].add(document_counts)
            if len(chunks):
                parts[split].append(chunks)
                if first_document[split] is None:
                    first_document[split] = document_hash
    return Processed(
        block=batch.block,
        ends_block=batch.ends_block,
        read=batch.read,
        bytes=batch.bytes,
        chunks={split: Chunks.concatenate(parts[split]) for split in SPLITS},
        counts=counts,
        first_document=first_document,
        document_tokens=np.asarray(document_tokens, np.int64),
    )


def _key(document_hash: int, copy: int) -> int:
    """What a copy's cuts follow: copies of a document are cut at different places."""
    return document_hash if copy == 0 else int(random.mix(np.uint64(document_hash) ^ random.mix(copy))[0])
