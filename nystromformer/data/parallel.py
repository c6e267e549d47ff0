"""An ordered map over processes with bounded memory."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from multiprocessing import get_context
from typing import Any, TypeVar

from nystromformer.errors import UserError

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
