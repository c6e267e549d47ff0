"""The machine: the device of a setting, and what a measurement ran on."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import nystromformer
from nystromformer.errors import UserError


def device_of(name: str) -> torch.device:
    """The device of a setting: `auto` is the GPU where there is one.

    Raises:
        UserError: a GPU is asked for and there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: PyTorch finds no GPU here: write device=cpu")
    return torch.device(name)


def machine(device: torch.device) -> dict[str, str]:
    """Device, threads, versions, commit and date, for a page of results."""
    if device.type == "cuda":
        name, threads = torch.cuda.get_device_name(), ""
    else:
        name = f"{_processor()} ({torch.backends.cpu.get_cpu_capability()})"
        threads = f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    found = {"device": name, "threads": threads}
    for package in ("torch", "transformers", "nystrom-attention"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    found |= {"python": platform.python_version(), "commit": commit(), "date": date.today().isoformat()}
    return {key: value for key, value in found.items() if value}


def commit() -> str:
    """The checkout's commit, with a word on uncommitted changes to the package; the version if installed."""
    package = Path(nystromformer.__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(package), *words], capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", ".")
        return git("rev-parse", "--short=10", "HEAD") + (" with uncommitted changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return f"none, version {nystromformer.__version__}"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
