import os
from collections.abc import Iterator

import pytest

from nystromformer.data.processes import ordered_map
from nystromformer.errors import UserError

_offset = 0


def start(offset: int) -> None:
    global _offset
    _offset = offset


def work(number: int) -> tuple[int, int]:
    return number + _offset, os.getpid()


def die(number: int) -> None:
    os._exit(1)


def test_results_come_in_order_and_items_are_taken_as_needed():
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(1000):
            taken += 1
            yield number

    results = ordered_map(work, items(), workers=2, initializer=start, initargs=(10,))
    number, process = next(results)
    assert number == 10
    assert process != os.getpid()
    assert taken <= 6
    assert [result[0] for result in results] == list(range(11, 1010))


@pytest.mark.parametrize(("workers", "items"), [(1, 10), (2, 2), (0, 0)])
def test_little_work_starts_no_process(workers: int, items: int):
    results = list(ordered_map(work, range(items), workers=workers, initializer=start, initargs=(0,)))
    assert results == [(number, os.getpid()) for number in range(items)]


def test_a_dead_worker_is_told_in_one_line():
    with pytest.raises(UserError, match=r"a process of the preparation died.*data\.workers"):
        list(ordered_map(die, range(10), workers=2, initializer=start, initargs=(0,)))
