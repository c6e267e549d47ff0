"""Collecting the tests gives the same tests whenever, wherever and with whatever hashes it is done.

pytest-xdist's workers collect each for itself, seconds apart, and give up where they disagree.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parents[1]
ELSEWHEN = """
import os, random, time
_offset = float(os.environ["TEST_CLOCK_OFFSET"])
_time, _time_ns = time.time, time.time_ns
time.time = lambda: _time() + _offset
time.time_ns = lambda: _time_ns() + int(_offset * 1e9)
os.cpu_count = lambda: int(os.environ["TEST_CPUS"])
random.seed(int(_offset))
"""
"""As sitecustomize.py: another clock, another number of cores, other random numbers."""


def collected(folder: Path, *, offset: int, hash_seed: int, cpus: int) -> list[str]:
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(ELSEWHEN)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(folder), str(TOP)]),
        "PYTHONHASHSEED": str(hash_seed),
        "TEST_CLOCK_OFFSET": str(offset),
        "TEST_CPUS": str(cpus),
        "TMPDIR": str(folder),
        "TZ": f"UTC{cpus}",
    }
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=TOP, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return [line for line in done.stdout.splitlines() if "::" in line]


@pytest.mark.slow  # imports everything twice
def test_two_collections_are_equal_and_ids_are_names(tmp_path):
    first = collected(tmp_path / "first", offset=0, hash_seed=1, cpus=2)
    second = collected(tmp_path / "second", offset=86_400 * 400 + 7, hash_seed=4711, cpus=5)
    assert len(first) > 1000
    assert first == second
    for test in first:  # an id is a name: see the hook in conftest.py
        assert test.isprintable()
        assert str(Path.home()) not in test
        assert len(test) < 300
