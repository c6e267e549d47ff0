"""The tests on a GPU that is not there, each file in a process of its own."""

from pathlib import Path

import pytest

from tests.pretend.gpu import PRETENDED, pytest_on_it, why_not


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(PRETENDED, reason="is this process")
@pytest.mark.parametrize("tested", ["steps", "heads", "graphs"])
def test_in_a_process(tested):
    obstacle = why_not()
    if obstacle:
        pytest.skip(obstacle)
    done = pytest_on_it(str(Path(__file__).with_name(f"test_{tested}_on_pretended_gpu.py")))
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "passed" in done.stdout
