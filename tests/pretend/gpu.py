"""A GPU that is not there: fake tensors on `cuda`, in a PyTorch built without CUDA.

Fake tensors have a shape, a type and a device, and no memory. What this shows: whether all that meets is
on one device, and whether a step waits for the GPU. What it does not: any number.

What is loaded for it has to come before PyTorch, so that tests run in a process of their own: `pytest_on_it`.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

PRETENDED = os.environ.get("PRETEND_GPU") == "1"
SOURCE = Path(__file__).with_suffix(".cpp")


def torch_folder() -> Path:
    found = find_spec("torch")
    assert found is not None
    assert found.submodule_search_locations
    return Path(found.submodule_search_locations[0])


def load() -> None:
    """Compile `gpu.cpp` against the installed PyTorch, a second's work, and load it beside its libraries."""
    folder = torch_folder()
    for name in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(folder / "lib" / name), mode=ctypes.RTLD_GLOBAL)
    with tempfile.TemporaryDirectory() as made:
        library = Path(made) / "gpu.so"
        subprocess.run(
            ["g++", "-std=c++20", "-O0", "-fPIC", "-shared", f"-I{folder / 'include'}", "-o", library, SOURCE,
             f"-L{folder / 'lib'}", "-lc10", "-ltorch_cpu"],
            check=True, timeout=200,
        )  # fmt: skip
        ctypes.CDLL(str(library))


def why_not() -> str | None:
    """Why nothing can be pretended here."""
    import torch

    if torch.version.cuda is not None:
        return "this PyTorch has CUDA"
    if sys.platform != "linux" or shutil.which("g++") is None:
        return "needs g++ on Linux"
    header = torch_folder() / "include/c10/core/impl/DeviceGuardImplInterface.h"
    if not header.exists() or "NoOpDeviceGuardImpl final" in header.read_text():
        return "this PyTorch has no guard of a device that is not there"
    return None


def pytest_on_it(file: str) -> subprocess.CompletedProcess[str]:
    """Run a file's tests in a process with a GPU that is not there."""
    program = (
        "import tests.pretend.gpu, pytest, sys; "
        f"sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', {file!r}]))"
    )
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PRETEND_GPU": "1", "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=580,
    )  # fmt: skip


if PRETENDED:
    load()
    import torch
    import torch.cuda.amp.common
    from torch._subclasses import FakeTensor, FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    # What autocast asks before it is switched on.
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.cuda.is_bf16_supported = lambda *_, **__: True
    torch.cuda._lazy_init = lambda: None  # what `.to` starts, outside a fake mode

    class Idle:
        """A stream, or an event on one, of a GPU that computes nothing."""

        def __init__(self, *_, **__) -> None: ...

        def __getattr__(self, name):
            return lambda *_, **__: self

    # What FSDP asks of the device on which it gathers and scatters.
    idle = {"Stream": Idle, "Event": Idle, "current_stream": Idle, "stream": nullcontext}
    for name, stand_in in (idle | {"current_device": lambda: 0}).items():
        setattr(torch.cuda, name, stand_in)

    DEVICE = torch.device("cuda", 0)

    class Waited(Exception):
        """The CPU waited for the GPU."""

    class PretendGPU(TorchDispatchMode):
        """Within it tensors on `cuda` are fake and those on the CPU real, as of a loop that feeds a GPU.

        Reading a fake tensor (`.item()`, `.tolist()`, `if`), and shapes that depend on one (`nonzero`, a
        boolean index), raise of themselves; a copy between CPU and GPU that waits raises `Waited`.
        """

        def __init__(self) -> None:
            super().__init__()
            self._fake = FakeTensorMode(allow_non_fake_inputs=True)
            self.watching = True
            self.operations: list[str] = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            kwargs = kwargs or {}
            leaves = tree_leaves((args, kwargs))
            on_gpu = any(isinstance(x, FakeTensor) for x in leaves)
            to = kwargs.get("device")
            if not on_gpu and (to is None or torch.device(to).type != "cuda"):
                return func(*args, **kwargs)
            if self.watching:
                first = next((x for x in leaves if isinstance(x, torch.Tensor)), None)
                self.operations.append(f"{func} {() if first is None else tuple(first.shape)}")
                blocking = "_to_copy" in str(func) and not kwargs.get("non_blocking")
                if blocking and to is not None and torch.device(to).type != args[0].device.type:
                    raise Waited(f"{args[0].device} → {to}")
            with self._fake:
                return func(*args, **kwargs)

    class OnCpu(Exception):
        """Something was computed, or made, in the CPU's memory."""

    class OnGpuAlone(TorchDispatchMode):
        """Within it, and a `PretendGPU`, every operation is on the GPU, as of what a CUDA graph records."""

        def __init__(self) -> None:
            super().__init__()
            self.operations = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            kwargs = kwargs or {}
            self.operations += 1
            found = func(*args, **kwargs)
            for x in tree_leaves((args, kwargs, found)):
                if isinstance(x, torch.Tensor) and x.device.type == "cpu":
                    raise OnCpu(f"{func} of {tuple(x.shape)}")
            return found
