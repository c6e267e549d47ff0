"""Processes beside this one: fed with items in order, and never left behind by it. Light to import."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from multiprocessing import get_context, parent_process
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
    end_with_parent()
    # One process a core already: the tokenizer's own threads would only get in their way.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    initializer(*initargs)


def end_with_parent() -> None:
    """Have this process, which multiprocessing started, end when the one that asked for it does, however
    that was killed.

    Left behind, it would keep its memory, and keep a pipe open that somebody reads the other's output from.
    """

    def watch() -> None:
        parent = parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
