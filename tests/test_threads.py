"""Waiting threads sleep, unless the user said how they wait."""

import os
import re
import subprocess
import sys

import pytest

from nystromformer.threads import CHOSEN_BY_THE_USER, let_waiting_threads_sleep


def test_set_where_nothing_is_said():
    environment = {"PATH": "/bin"}
    let_waiting_threads_sleep(environment)
    assert environment == {"PATH": "/bin", "OMP_WAIT_POLICY": "passive"}


@pytest.mark.parametrize("name", CHOSEN_BY_THE_USER)
def test_what_the_user_set_stays(name):
    environment = {name: "1"}
    let_waiting_threads_sleep(environment)
    assert environment == {name: "1"}


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch brings GCC's OpenMP on Linux")
@pytest.mark.parametrize(("given", "spins"), [({}, "0"), ({"GOMP_SPINCOUNT": "123"}, "123")])
def test_a_command_and_its_workers_wait_so(given, spins):
    """As OpenMP's library tells itself, when the command has imported torch, and a process it starts."""
    program = """
import sys
from nystromformer import cli
cli.COMMANDS["convert"] = cli.Command("", lambda settings: __import__("torch"), ())
cli.main(["convert", "source=a", "target=b"])
assert "torch" in sys.modules
__import__("subprocess").run([sys.executable, "-c", "import torch"], check=True)
"""
    environment = {k: v for k, v in os.environ.items() if k not in CHOSEN_BY_THE_USER}
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={**environment, **given, "OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    told = re.findall(r"GOMP_SPINCOUNT = '(\d+)'", ended.stderr)
    assert len(told) >= 2
    assert set(told) == {spins}
