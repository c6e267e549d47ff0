"""How the threads of this process, and of those it starts, wait for each other."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

POLICY = "OMP_WAIT_POLICY"
"""OpenMP's own variable: GCC's, LLVM's and Intel's libraries read it when they are loaded."""
CHOSEN_BY_THE_USER = (POLICY, "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")


def let_waiting_threads_sleep(environment: MutableMapping[str, str] = os.environ) -> None:
    """Have threads that wait give their core away; without effect once torch is imported.

    OpenMP's threads spin for milliseconds instead. That costs nothing on an idle machine. Where another
    process has taken one of two cores, the spinning keeps the thread that is waited for off the other:
    the demo then makes a fraction of its steps. Whatever the user has set about waiting stays.
    """
    if not any(name in environment for name in CHOSEN_BY_THE_USER):
        environment[POLICY] = "passive"
