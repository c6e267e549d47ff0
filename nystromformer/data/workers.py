"""What happens to a batch of documents in worker processes, and how those are fed.

Light to import, because every worker imports this module.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing import get_context
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from nystromformer.data import stateless_random as random
from nystromformer.data.documents import SPLITS, SplitRule
from nystromformer.data.reading import DocumentBatch, ReadCounts
from nystromformer.data.segmentation import Chunks, Counts, Segmentation, split_sentences
from nystromformer.errors import UserError


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
    for (_, document_hash, copies, part), document in zip(batch.documents, sentences, strict=True):
        token_ids = [next(encodings).ids for _ in document]
        document_tokens.append(sum(map(len, token_ids)))
        split = _work.split.of(document_hash)
        for copy in range(copies if split == "train" else 1):
            # Copies of a document are cut at different places.
            key = int(random.salted(document_hash, copy)[0]) if copy else document_hash
            chunks, document_counts = _work.segmentation.chunk(token_ids, key)
            counts[split].add(document_counts)
            if len(chunks):
                parts[split].append(chunks)
                training_chunks[part] += len(chunks) * (split == "train")
                if first_document[split] is None:
                    first_document[split] = document_hash
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


# --- processes ----------------------------------------------------------------------------------------

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: int,
    initializer: Callable[..., None],
    initargs: tuple[Any, ...],
) -> Iterator[Result]:
    """Yield `function(item)` for each item, in the items' order, computed in `workers` processes.

    At most three items a worker are in flight, however slowly the results are taken. `workers` 0
    means every core. Fewer items than a pool is worth, or one worker, run in this process. `function`
    and `initializer`, which runs once in each process, must be importable by name.
    """
    workers = workers or os.cpu_count() or 1
    items = iter(items)
    first_items = list(islice(items, 3))
    if workers == 1 or len(first_items) < 3:
        initializer(*initargs)
        yield from map(function, chain(first_items, items))
        return
    # Spawned, not forked: the tokenizer's and Arrow's threads do not survive a fork.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (initializer, initargs))
    in_flight: deque[Future[Result]] = deque()
    try:
        for item in chain(first_items, items):
            in_flight.append(pool.submit(function, item))
            if len(in_flight) >= 3 * workers:
                yield in_flight.popleft().result()
        while in_flight:
            yield in_flight.popleft().result()
    except BrokenProcessPool as error:
        raise UserError(
            "a process of the preparation died, of too little memory or because the calling script lacks "
            "`if __name__ == '__main__':`: add it, or write fewer data.workers (1 needs no processes)"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(initializer: Callable[..., None], initargs: tuple[Any, ...]) -> None:
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    # One process a core already: the tokenizer's own threads would only get in their way.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    initializer(*initargs)


def _end_with(parent: int) -> None:
    """End this process when the one that started it is gone, however that was killed."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
