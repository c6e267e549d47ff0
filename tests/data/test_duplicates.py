import random

import pytest

from nystromformer.data import reading
from nystromformer.data.reading import HashSet


def test_it_answers_as_a_set_does_however_often_it_merges(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reading, "_RECENT", 7)
    draw = random.Random(0)
    hashes, known = HashSet(), set()
    for _ in range(2000):
        number = draw.choice([0, 2**64 - 1, draw.randrange(500), draw.randrange(2**64)])
        assert hashes.add(number) == (number not in known)
        known.add(number)
    assert len(hashes) == len(known)


def test_sixteen_bytes_a_document_at_most():
    tracemalloc = pytest.importorskip("tracemalloc")
    hashes = HashSet()
    tracemalloc.start()
    count = 2**18 + 2**16
    for number in range(count):
        hashes.add(number * 0x9E3779B97F4A7C15 % 2**64)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The bound of the docstring: two arrays while merging, and the recent ones.
    assert peak < 16 * count + 16e6
