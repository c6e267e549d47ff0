"""Memory of tensors that went is there for the next ones, where a command computes on a CPU."""

import os
import subprocess
import sys

import pytest

from nystromformer import heap
from nystromformer.cli import main

glibc = pytest.mark.skipif(
    sys.platform != "linux" or not os.confstr("CS_GNU_LIBC_VERSION"),
    reason="glibc is the C library that keeps",
)

FAULTS = """
import resource, sys, torch
{first}
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    for size in (10, 12, 16):  # 40, 48 and 64 MiB
        torch.empty(size * 2**20).fill_(1)
found = []
for _ in range(24):
    before = faults()
    step()
    found.append(faults() - before)
print(min(found[12:]))
"""
PAGES = 152 * 2**20 // 4096
"""That a step touches, where a page is of 4 KiB."""


def faults(first: str, **environment: str) -> int:
    """Pages that the system filled in a later step, at least: the first ones try how blocks fit together."""
    done = subprocess.run(
        [sys.executable, "-c", FAULTS.format(first=first)],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    return int(done.stdout.split()[-1])


ASK = "from nystromformer.heap import keep_freed_memory; kept = keep_freed_memory()"


@glibc
def test_later_steps_take_no_memory_from_the_system():
    assert faults(f"{ASK}; assert kept") < PAGES / 50


@glibc
def test_what_the_user_set_stays():
    """The system is asked at every step, as it is by default for blocks of more than 32 MiB."""
    asked = faults(f"{ASK}; assert not kept", GLIBC_TUNABLES="glibc.malloc.check=0")
    assert asked > PAGES / 512  # of 2 MiB at most


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_a_prediction_keeps_memory(command, monkeypatch, tmp_path):
    from nystromformer.tasks import predict

    asked = []
    monkeypatch.setattr(predict, "keep_freed_memory", lambda: asked.append(command))
    assert main([command, f"checkpoint={tmp_path / 'absent'}", f"file={tmp_path / 'absent.csv'}"]) == 2
    assert asked == [command]


@pytest.mark.parametrize(
    "environment",
    [{name: "1"} for name in heap.CHOSEN_BY_THE_USER] + [{"GLIBC_TUNABLES": "glibc.malloc.arena_max=1"}],
)
def test_nothing_is_asked_where_the_user_chose(environment, monkeypatch):
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda _: pytest.fail("asked"))
    assert not heap.keep_freed_memory(environment)


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda _: object())
    assert not heap.keep_freed_memory({})


@pytest.mark.parametrize("largest", heap.LARGEST)
def test_the_largest_block_that_the_library_takes(largest, monkeypatch):
    asked = []

    class Library:
        @staticmethod
        def mallopt(what, value):
            asked.append((what, value))
            return what != heap.M_MMAP_THRESHOLD or value <= largest

    monkeypatch.setattr(heap.ctypes, "CDLL", lambda _: Library)
    monkeypatch.setattr(heap.sys, "platform", "linux")
    assert heap.keep_freed_memory({})
    assert asked[-2:] == [(heap.M_MMAP_THRESHOLD, largest), (heap.M_TRIM_THRESHOLD, -1)]
