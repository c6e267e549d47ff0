"""What every test may rely on: no network, no prompt, a fair share of the cores."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Set before torch, transformers or wandb are imported; processes that tests start inherit them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["MPLBACKEND"] = "Agg"
for _variable in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
    os.environ.pop(_variable, None)
# One thread a process: the tensors here are small, xdist's workers share the cores, and threads that wait
# for each other on a core that something else uses lose most of their time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

_LONGEST_ID = 100


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Bytes and long or unprintable texts are numbered in ids, not quoted: an id is a name.

    What is quoted must be the same in every process that collects; an archive holds the time of its making.
    """
    if isinstance(val, bytes):
        return argname
    if isinstance(val, str) and not (len(val) <= _LONGEST_ID and val.isprintable() and val.isascii()):
        return argname
    return None


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps a process's first device for good, and a test on a GPU may follow one on the CPU: here
    a test begins without, and what was there before is there again afterwards."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    states = (PartialState, AcceleratorState, GradientState)
    kept = [(state._shared_state, {**state._shared_state}) for state in states]
    for shared, _ in kept:
        shared.clear()
    yield
    for shared, before in kept:
        shared.clear()
        shared.update(before)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of larger texts, where the machine has one."""
    folder = os.environ.get("NYSTROMFORMER_TEST_DATA")
    if not folder:
        pytest.skip("NYSTROMFORMER_TEST_DATA is not set: it names a folder of larger texts")
    return Path(folder)
