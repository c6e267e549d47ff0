"""The Triton kernels as machine code for GPUs that are not there: they compile, and fit.

Triton's compiler needs no GPU. What this shows: the code generator takes the kernels, and a program's
shared memory is what `support.NEEDS` says. What it does not: that they run, or how fast.
"""

import importlib.metadata
import importlib.util
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch

from nystromformer.attention.gpu.support import INTERPRETED, shared_memory, shared_memory_needed

HAS_TRITON = importlib.util.find_spec("triton") is not None
VERSION = tuple(map(int, importlib.metadata.version("triton").split(".")[:2])) if HAS_TRITON else (0, 0)

pytestmark = [
    pytest.mark.skipif(not HAS_TRITON, reason="needs the package triton"),
    pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET=1: nothing is compiled"),
    pytest.mark.skipif(
        VERSION < (3, 3),
        reason="this Triton takes a kernel's source otherwise",
    ),
]

TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.int32: "*i32",
    torch.uint8: "*u8",
}


@pytest.fixture
def launched(monkeypatch, tmp_path):
    """The kernels that calls launch: (kernel, its arguments by name, its options). None is run."""
    from triton.runtime.jit import JITFunction

    found = []

    def note(self, *given, grid, warmup, **named):
        options = {name: named.pop(name) for name in ("num_warps", "num_stages", "maxnreg") if name in named}
        found.append((self, dict(zip(self.arg_names, given, strict=False)) | named, options))

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(JITFunction, "run", note)
    return found


@pytest.mark.parametrize(
    ("b", "h", "n", "m", "d"),
    [(5462, 12, 130, 16, 16), (70_000, 1, 70, 64, 16), (1, 12, 2**21, 64, 64), (1, 1, 300, 256, 16)],
    ids=["65,544 heads", "70,000 rows", "two million tokens", "one head"],
)
@pytest.mark.parametrize("way", ["no mask", "mask", "neighbours"])
def test_grids_are_within_cudas_limits(monkeypatch, b, h, n, m, d, way):
    """2³¹ − 1 programs on the first axis, 65,535 on the others; of fake tensors, which have no memory."""
    from torch._subclasses import FakeTensorMode
    from triton.runtime.jit import JITFunction

    from nystromformer.attention.gpu import launch, plan

    grids = {}
    monkeypatch.setattr(
        JITFunction, "run", lambda self, *_, grid, **__: grids.setdefault(self.__name__, []).append(grid)
    )
    monkeypatch.setattr(plan, "chip", lambda device: (132, True))
    with FakeTensorMode():
        inputs = projections(torch.bfloat16, d, b, h, n)
        mask = torch.zeros(b, n, dtype=torch.bool) if way == "mask" else None
        weight = torch.zeros(h, 1, 33, 1)
        if way == "neighbours":
            launch_near_and_far(*inputs, 16, m)
            launch_around_neighbours(*inputs, mask, weight, m)
        else:
            attention = launch.Attention(*inputs, mask, weight, m, 6)
            out, *kept = attention.forward()
            attention.backward(out, kept)
    near = {"near_kernel", "near_backward_key_kernel", "mixed_backward_kernel", "means_backward_kernel"}
    plain = {"gather_kernel", "spread_backward_query_kernel", "mix_backward_kernel"}
    assert {"means_kernel", *(near if way == "neighbours" else plain)} <= set(grids)
    for grid in (grid for launches in grids.values() for grid in launches):
        assert grid[0] < 2**31
        assert all(0 < programs <= 65_535 for programs in grid[1:])
    # Two programs fill a multiprocessor: more would only wait, each with a place for its iterates.
    if way != "neighbours":
        assert grids["mix_backward_kernel"] == [(min(b * h, 2 * 132),)]


def compiled(kernel, arguments, options, capability):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, hints = {}, {}, {}
    for place, parameter in enumerate(kernel.params):
        x, kind = arguments[parameter.name], "constexpr"
        if parameter.is_constexpr or x is None or (isinstance(x, int) and x == 1):
            constants[(place,)] = x
        elif isinstance(x, torch.Tensor):
            kind, hints[(place,)] = TYPES[x.dtype], [["tt.divisibility", 16]]
        elif isinstance(x, int):
            kind = "i32"
            if x % 16 == 0:
                hints[(place,)] = [["tt.divisibility", 16]]
        else:
            kind = "fp32"
        signature[parameter.name] = kind
    source = ASTSource(kernel, signature, constexprs=constants, attrs=hints)
    target = GPUTarget("cuda", 10 * capability[0] + capability[1], 32)
    return triton.compile(source, target=target, options=options)


def projections(dtype, d, b=2, h=12, n=1024):
    return [torch.empty(b, n, h, d, dtype=dtype).transpose(1, 2) for _ in range(3)]


def launch_both_ways(monkeypatch, dtype, m, d, capability, masked):
    from nystromformer.attention.gpu import launch, plan

    monkeypatch.setattr(plan, "chip", lambda device: (132, capability[0] == 9))
    query, key, value = projections(dtype, d)
    mask = torch.zeros(2, 1024, dtype=torch.bool) if masked else None
    weight = torch.zeros(12, 1, 33, 1)
    attention = launch.Attention(query, key, value, mask, weight, m, 6)
    out, *kept = attention.forward()
    attention.backward(out, kept)


def launch_near_and_far(query, key, value, w, m):
    """Both ways."""
    from nystromformer.attention.gpu import neighbours

    b, h, n, d = query.shape
    c = -(-n // w)
    shapes = ((b, h, m, d), (b, h, m, d), (b, h, m, m), (b, h, m), (b, c, m))
    inputs = (query, key, value, torch.empty(b, dtype=torch.int32), *map(torch.empty, shapes))
    attention = neighbours.NearAndFar(*inputs, w)
    kept = attention.forward()
    attention.backward(kept[0], kept)


def launch_around_neighbours(query, key, value, mask, weight, m):
    """The landmarks, the inverse and the convolution, which are operators of their own there; both ways."""
    from nystromformer.attention.gpu import operator

    average = operator.SegmentMeans(query, key, mask, m)
    (means,) = average.forward()
    average.backward(means, [])
    invert = operator.Inverse(means[0], means[1], 6, half=True)
    invert.backward(*invert.forward(), [])
    convolve = operator.Convolution(value, weight)
    convolve.forward()
    convolve.backward(query, [])


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("dtype", "m", "d", "capability"),
    [
        (torch.bfloat16, 64, 64, (9, 0)),
        (torch.bfloat16, 32, 128, (9, 0)),
        (torch.bfloat16, 64, 80, (9, 0)),
        (torch.bfloat16, 64, 96, (9, 0)),
        (torch.bfloat16, 128, 128, (9, 0)),
        (torch.bfloat16, 256, 64, (9, 0)),
        (torch.bfloat16, 256, 16, (8, 6)),
        (torch.float16, 64, 64, (9, 0)),
        (torch.float16, 256, 16, (8, 0)),
        (torch.float32, 64, 64, (9, 0)),
        (torch.float32, 256, 16, (9, 0)),
    ],
)
def test_kernels_compile_and_fit(launched, monkeypatch, dtype, m, d, capability):
    launch_both_ways(monkeypatch, dtype, m, d, capability, masked=True)
    limit = shared_memory(capability)
    assert shared_memory_needed(dtype, m, d) <= limit
    names = set()
    for kernel, arguments, options in launched:
        names.add(kernel.__name__)
        made = compiled(kernel, arguments, options, capability)
        assert f".target sm_{capability[0]}{capability[1]}" in made.asm["ptx"]
        assert made.metadata.shared <= limit, kernel.__name__
        # With two stages a kernel takes more, which is done where there is room for it only.
        if options.get("num_stages", 1) == 1:
            assert made.metadata.shared <= shared_memory_needed(dtype, m, d), kernel.__name__
    assert {"gather_kernel", "spread_kernel", "gather_backward_kernel", "mix_backward_kernel"} <= names


SPILLED = {
    "mix_backward_kernel": 640,
    "gather_backward_kernel": 192,
    "gather_kernel": 32,
    "spread_kernel": 32,
}
"""Bytes a thread may lay down in local memory, heads of up to 64; kernels that are not named, none."""
SPILLED_BY_WIDE_HEADS = SPILLED | {"gather_backward_kernel": 640}


SPILLED_BY_NEIGHBOURS = {
    "near_backward_query_kernel": 640,
    "near_backward_key_kernel": 192,
    "mixed_backward_kernel": 96,
}
SPILLED_BY_NEIGHBOURS_ON_HOPPER = {"near_backward_query_kernel": 16}
REGISTERS = 65_536
"""Of a multiprocessor, which one program must not exceed."""
SLOWEST = 15
"""Seconds of a CPU in which a kernel is to be compiled: the inverse's backward pass once took 41."""


def assembled(made, capability, folder) -> tuple[int, int]:
    """What NVIDIA's assembler says of a kernel: registers a thread, bytes spilled, stores only."""
    import triton

    assembler = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    source = folder / "kernel.ptx"
    source.write_text(made.asm["ptx"])
    chip = "sm_90a" if capability == (9, 0) else f"sm_{capability[0]}{capability[1]}"
    told = subprocess.run(
        [assembler, "-v", f"--gpu-name={chip}", source, "-o", folder / "kernel.cubin"],
        capture_output=True, text=True, check=True,
    ).stderr  # fmt: skip
    (registers,) = re.findall(r"Used (\d+) registers", told)
    (spilled,) = re.findall(r"(\d+) bytes spill stores", told)
    return int(registers), int(spilled)


def check_table(launched, capability, folder, allowed) -> None:
    """Registers, spills and seconds of every kernel within their bounds."""
    found = {}
    for kernel, arguments, options in launched:
        began = sum(os.times()[:4])  # of this process, and of the assembler that it starts
        made = compiled(kernel, arguments, options, capability)
        seconds = sum(os.times()[:4]) - began
        found[kernel.__name__] = (*assembled(made, capability, folder), options["num_warps"], seconds)
    for name, (registers, spilled, warps, seconds) in found.items():
        assert registers * 32 * warps <= REGISTERS, name
        assert spilled <= allowed.get(name, 0), name
        assert seconds < SLOWEST, name


@pytest.mark.nightly
@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0)], ids="sm_{0[0]}{0[1]}".format)
@pytest.mark.parametrize(("m", "d"), [(64, 64), (32, 32), (64, 32), (32, 128)])
def test_registers_suffice_in_bfloat16(launched, monkeypatch, tmp_path, m, d, capability):
    launch_both_ways(monkeypatch, torch.bfloat16, m, d, capability, masked=True)
    assert {kernel.__name__ for kernel, *_ in launched} >= SPILLED.keys()
    check_table(launched, capability, tmp_path, SPILLED if d <= 64 else SPILLED_BY_WIDE_HEADS)


@pytest.mark.nightly
@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0)], ids="sm_{0[0]}{0[1]}".format)
@pytest.mark.parametrize("side", [32, 64])
def test_registers_suffice_with_neighbours_in_bfloat16(launched, monkeypatch, tmp_path, side, capability):
    from nystromformer.attention.gpu import plan

    monkeypatch.setattr(plan, "chip", lambda device: (132, capability[0] == 9))
    launch_near_and_far(*projections(torch.bfloat16, side), side, side)
    assert {kernel.__name__ for kernel, *_ in launched} >= SPILLED_BY_NEIGHBOURS.keys()
    on_hopper = capability == (9, 0)
    allowed = SPILLED_BY_NEIGHBOURS_ON_HOPPER if on_hopper else SPILLED_BY_NEIGHBOURS
    check_table(launched, capability, tmp_path, allowed)


def test_products_run_on_tensor_cores(launched, monkeypatch):
    launch_both_ways(monkeypatch, torch.bfloat16, 64, 64, (9, 0), masked=False)
    tiled = [call for call in launched if call[0].__name__ in ("gather_kernel", "spread_kernel")]
    assert len(tiled) == 2
    for kernel, arguments, options in tiled:
        assert "wgmma.mma_async" in compiled(kernel, arguments, options, (9, 0)).asm["ptx"]


@pytest.mark.parametrize(
    ("dtype", "w", "m", "d", "capability"),
    [
        (torch.bfloat16, 64, 64, 64, (9, 0)),
        (torch.bfloat16, 64, 64, 64, (8, 6)),
        (torch.bfloat16, 16, 16, 32, (8, 0)),
        (torch.float16, 64, 64, 64, (8, 0)),
        (torch.float32, 64, 64, 64, (9, 0)),
    ],
)
def test_kernels_of_neighbours_compile_and_fit(launched, monkeypatch, dtype, w, m, d, capability):
    from nystromformer.attention.gpu import plan

    monkeypatch.setattr(plan, "chip", lambda device: (132, capability[0] == 9))
    launch_near_and_far(*projections(dtype, d), w, m)
    assert len(launched) == 10
    for kernel, arguments, options in launched:
        made = compiled(kernel, arguments, options, capability)
        assert made.metadata.shared <= shared_memory(capability), kernel.__name__
        if kernel.__name__ == "whole_kernel":  # sums alone
            continue
        instruction = "wgmma.mma_async" if capability[0] == 9 else "mma.sync"
        assert instruction in made.asm["ptx"], kernel.__name__


def test_kernels_around_neighbours_compile_and_fit(launched, monkeypatch):
    from nystromformer.attention.gpu import plan

    monkeypatch.setattr(plan, "chip", lambda device: (132, True))
    mask, weight = torch.zeros(2, 1024, dtype=torch.bool), torch.zeros(12, 1, 33, 1)
    launch_around_neighbours(*projections(torch.bfloat16, 64), mask, weight, 64)
    names = {kernel.__name__ for kernel, *_ in launched}
    assert names >= {"means_kernel", "means_backward_kernel", "inverse_kernel", "inverse_backward_kernel"}
    assert names >= {"convolution_kernel", "kernel_gradient_kernel"}
    for kernel, arguments, options in launched:
        made = compiled(kernel, arguments, options, (9, 0))
        assert made.metadata.shared <= shared_memory((9, 0)), kernel.__name__
