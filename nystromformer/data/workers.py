"""What happens to a batch of documents in a worker process.

Light to import, because every worker imports this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from nystromformer.data import stateless_random as random
from nystromformer.data.documents import SPLITS, SplitRule
from nystromformer.data.reading import DocumentBatch, ReadCounts
from nystromformer.data.segmentation import Chunks, Counts, Segmentation, split_sentences


class Processed(NamedTuple):
    """A batch of documents after a worker."""

    block: int
    ends_block: bool
    read: list[ReadCounts]
    chunks: dict[str, Chunks]
    counts: dict[str, Counts]
    first_document: dict[str, int | None]
    """The hash of each split's first document that gave a chunk."""
    document_tokens: NDArray[np.int64]
    """Tokens of each document, (documents,)."""
    training_chunks: list[int]
    """Of each part of the corpus."""


@dataclass(frozen=True)
class Work:
    """All that a worker needs to know besides the documents."""

    tokenizer_json: str
    segmentation: Segmentation
    language: str
    split: SplitRule


_work: Work
_tokenizer: Tokenizer


def start_worker(work: Work) -> None:
    """Once in each process, before `process_batch`."""
    global _work, _tokenizer
    _work = work
    _tokenizer = Tokenizer.from_str(work.tokenizer_json)
    _tokenizer.encode_special_tokens = True  # "[MASK]" in a document is text, not a mask


def process_batch(batch: DocumentBatch) -> Processed:
    """Documents → sentences → token ids → chunks."""
    sentences = [split_sentences(document.text, _work.language) for document in batch.documents]
    flat = list(chain.from_iterable(sentences))
    encodings = iter(_tokenizer.encode_batch_fast(flat, add_special_tokens=False))
    parts: dict[str, list[Chunks]] = {split: [] for split in SPLITS}
    counts = {split: Counts() for split in SPLITS}
    first_document: dict[str, int | None] = dict.fromkeys(SPLITS)
    document_tokens = []
    training_chunks = [0] * len(batch.read)
    for document, own_sentences in zip(batch.documents, sentences, strict=True):
        token_ids = [next(encodings).ids for _ in own_sentences]
        document_tokens.append(sum(map(len, token_ids)))
        split = _work.split.of(document.hash)
        for copy in range(document.copies if split == "train" else 1):
            # Copies of a document are cut at different places.
            key = int(random.salted(document.hash, copy)[0]) if copy else document.hash
            chunks, document_counts = _work.segmentation.chunk(token_ids, key)
            counts[split].add(document_counts)
            if len(chunks):
                parts[split].append(chunks)
                training_chunks[document.part] += len(chunks) * (split == "train")
                if first_document[split] is None:
                    first_document[split] = document.hash
    return Processed(
        block=batch.block,
        ends_block=batch.ends_block,
        read=batch.read,
        chunks={split: Chunks.concatenate(parts[split]) for split in SPLITS},
        counts=counts,
        first_document=first_document,
        document_tokens=np.asarray(document_tokens, np.int64),
        training_chunks=training_chunks,
    )
