"""How this process gets memory for tensors on a CPU: once from the system, not anew for every tensor.

PyTorch takes memory for a CPU's tensors from the C library. glibc asks the system for every larger block,
and hands it back when the tensor goes; the system fills each page with zeros when it is touched first. In a
training step, whose activations come and go, that took a quarter of the time. Kept, the memory is there for
the next step's tensors. The process then holds at its end what it held at its peak.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping

CHOSEN_BY_THE_USER = (
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_MMAP_MAX_",
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_TOP_PAD_",
)
"""With `GLIBC_TUNABLES`, where glibc reads it from."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of `mallopt`, as in glibc's malloc.h."""
LARGEST = (2**31 - 1, 2**25)
"""Blocks from which on the system is asked for each; the second is the most that glibc before 2.35 takes."""


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Have the C library keep what tensors give back; whether it does. No result depends on it.

    Without effect where the user has set how it does that, and with C libraries other than glibc, which have
    no such function.
    """
    chosen = any(name in environment for name in CHOSEN_BY_THE_USER)
    if chosen or "glibc.malloc" in environment.get("GLIBC_TUNABLES", "") or sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    taken = any(mallopt(M_MMAP_THRESHOLD, size) for size in LARGEST)
    return taken and bool(mallopt(M_TRIM_THRESHOLD, -1))
