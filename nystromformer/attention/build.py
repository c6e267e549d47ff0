"""`kernel/nystrom.cpp` as a shared library: compiled for the CPU at hand, kept, and loaded.

It is kept in the user's cache, one file for each version of source, compiler and CPU. What is loaded runs
as this user, so a folder or file that another user can write is not taken. Where the cache cannot be
used, each process compiles for itself, in a temporary folder that no one else can enter.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).with_name("kernel")
# -march=native, because the vectors' width is the speed. No -ffast-math: NaN has to stay NaN.
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-shared", "-fopenmp", "-fno-math-errno")


def load() -> ctypes.CDLL:
    """The library, from the cache or compiled first: seconds. One line in the log where nothing is kept.

    Raises:
        OSError: no g++, or no place whose files this process may write and load.
        subprocess.SubprocessError: the compiler failed.
    """
    compiler = _compiler()
    name = f"nystrom-{fingerprint()}.so"
    try:
        return _load_kept(cache_folder() / name, compiler)
    except (OSError, subprocess.CalledProcessError) as error:  # a full disk fails the compiler
        obstacle = told(error)
    with tempfile.TemporaryDirectory() as folder:  # its memory stays mapped when the file is gone
        file = Path(folder) / name
        _compile(compiler, file)
        library = _load_own(file)
    logger.warning(
        "attention's kernel is compiled by each process anew, which takes seconds: %s; "
        "XDG_CACHE_HOME=FOLDER names another place",
        obstacle,
    )
    return library


def told(error: OSError | subprocess.SubprocessError) -> str:
    """What went wrong, in one line."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    detail = str(getattr(error, "stderr", None) or error).strip()
    return detail.splitlines()[0] if detail else type(error).__name__


def cache_folder() -> Path:
    """Where libraries are kept; it need not exist.

    Raises:
        OSError: there is no home, as for a container's user that no list names.
    """
    root = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(root):  # by the XDG specification a relative one is to be ignored
        home = os.path.expanduser("~")
        if not os.path.isabs(home):
            raise OSError("HOME is not set and no list of users has this one")
        root = os.path.join(home, ".cache")
    return Path(root) / "nystromformer"


def fingerprint() -> str:
    """Of all that the machine code depends on: homes are shared by machines with other CPUs."""
    version = subprocess.run([_compiler(), "--version"], check=True, capture_output=True, timeout=60).stdout
    sources = [file.read_bytes() for file in sorted(SOURCES.iterdir())]
    parts = [*sources, version, " ".join(FLAGS).encode(), _cpu().encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def cpu_name() -> str:
    """The processor by name, and by its instruction sets, of which virtual machines hide some."""
    facts = _cpu()
    names = [line.partition(":")[2].strip() for line in facts.splitlines() if line.startswith("model name")]
    name = names[0] if names else platform.machine()
    return f"{name} ({hashlib.sha256(facts.encode()).hexdigest()[:4]})"


# --- the cache ----------------------------------------------------------------------------------------


def _load_kept(file: Path, compiler: str) -> ctypes.CDLL:
    """The kept library; compiled anew where it is missing, damaged, or may be another's."""
    folder = file.parent
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if others_can_write(folder.stat()):
        raise OSError(
            f"other users can write {folder}, whose files are loaded as code: write chmod go-w {folder}"
            if folder.stat().st_uid == os.geteuid()
            else f"{folder}, whose files are loaded as code, belongs to another user"
        )
    if os.statvfs(folder).f_flag & os.ST_NOEXEC:
        raise OSError(f"{folder} lies on a file system mounted noexec")
    with suppress(OSError):
        return _load_own(file)
    # Beside and renamed: several processes may come here at once, and one may be killed.
    with tempfile.TemporaryDirectory(dir=folder) as inside:
        beside = Path(inside) / file.name
        _compile(compiler, beside)
        beside.replace(file)
    return _load_own(file)


def _load_own(file: Path) -> ctypes.CDLL:
    """Load a file that no other user can write: the one that was looked at, whatever bears its name then.

    Raises:
        OSError: there is none, another can write it, or it is no library.
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if others_can_write(os.fstat(descriptor)):
            raise OSError(f"other users can write {file}")
        # Left open: the loader knows libraries by name and would take the next of this number for this one.
        return ctypes.CDLL(f"/proc/self/fd/{descriptor}")
    except OSError:
        os.close(descriptor)
        raise


def others_can_write(found: os.stat_result) -> bool:
    """Whether anyone but this user and root can change a file, or what a folder holds."""
    writable = bool(stat.S_IMODE(found.st_mode) & (stat.S_IWGRP | stat.S_IWOTH))
    return writable or found.st_uid not in (0, os.geteuid())


# --- the compiler -------------------------------------------------------------------------------------


def _compiler() -> str:
    if sys.platform != "linux":
        raise OSError(f"no recipe for {sys.platform}")
    name = os.environ.get("CXX", "g++")
    found = shutil.which(name)
    if found is None:
        raise OSError(f"{name} is not installed")
    return found


def _compile(compiler: str, file: Path) -> None:
    command = [compiler, *FLAGS, "-o", str(file), str(SOURCES / "nystrom.cpp")]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    file.chmod(0o700)  # some umasks let the group write


def _cpu() -> str:
    """The machine's instruction sets, as Linux lists them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    wanted = ("model name", "flags", "Features", "CPU part")
    facts = dict.fromkeys(line for line in lines if line.startswith(wanted))
    return "\n".join([platform.machine(), *facts])
