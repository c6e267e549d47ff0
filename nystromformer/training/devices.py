"""The devices, their number format, and what computes a run.

The last of these are the parts that the last bits of its numbers depend on, and that no setting names.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from importlib.metadata import version

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    gather_object,
)

from nystromformer.attention import build
from nystromformer.attention.nystrom import computed_by, options_of
from nystromformer.attention.precision import allow_tf32
from nystromformer.data.layout import MOST_WIDTHS, Batch
from nystromformer.errors import UserError
from nystromformer.model import NystromformerConfig
from nystromformer.settings import TrainingSettings
from nystromformer.training.checkpoint import Progress

TRAINING_TIMEOUT = timedelta(minutes=30)
"""How long an exchange between training processes may take before all of them end: what is left of a process
that hangs must not hold the others' devices for days. Where they wait for the main one, see `together`."""


DDP = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
"""Gradients lie where they are exchanged, which spares a second copy of them all and the copying."""


def open_accelerator(settings: TrainingSettings) -> Accelerator:
    """Join the other processes, if there are any, and set what holds for the whole process.

    Raises:
        UserError: Accelerate was told to share out the model itself.
    """
    if settings.deterministic:
        # Read by CUDA's matrix library when it starts; without it its sums may differ from run to run.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(settings.deterministic)
    torch.backends.cudnn.benchmark = False
    # Memory that is never read need not be filled; filling it costs a pass over every new tensor.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    allow_tf32(settings.tf32)
    return accelerator_of()


def accelerator_of(*, cpu: bool = False) -> Accelerator:
    """An Accelerator that places and connects, and does nothing else, whatever the environment says.

    `accelerate launch` hands on its flags and its configuration file, if there is one in the user's cache,
    as ACCELERATE_…: mixed precision would wrap forward, accumulation divide the gradient, Dynamo compile.
    The settings of this project say all that. What shares out the model is refused.

    Raises:
        UserError: Accelerate was told to share out the model itself, or NCCL needs to be told of these GPUs.
    """
    for variable, name in _SHARING.items():
        if os.environ.get(variable, "false").lower() in ("true", "1", "yes"):
            raise UserError(
                f"{variable} asks for Accelerate's own {name}, as `accelerate launch` does by its file, and "
                "that is not used: launch with one for several devices (distributed_type: MULTI_GPU) and "
                "write training.parallel=fsdp"
            )
    try:
        return Accelerator(
            cpu=cpu,
            mixed_precision="no",
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            dynamo_backend="no",
            kwargs_handlers=[InitProcessGroupKwargs(timeout=TRAINING_TIMEOUT), DDP],
        )
    except NotImplementedError as error:  # what `accelerate launch` looks after, and torchrun does not
        raise UserError(
            "these GPUs cannot exchange directly under this driver: set NCCL_P2P_DISABLE=1 and "
            f"NCCL_IB_DISABLE=1, or use `accelerate launch` ({error})"
        ) from None


_SHARING = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor and context parallelism",
}


def compile_in_place(model: torch.nn.Module) -> None:
    """torch.compile for static shapes, a graph for each.

    Shapes are few: the layout's widths, in training and validation, with padding and without, and for fewer
    rows at the end of a validation.
    """
    config = torch._dynamo.config
    limit = (
        "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    )  # before torch 2.7
    setattr(config, limit, max(8 * MOST_WIDTHS, getattr(config, limit)))
    model.compile(dynamic=False)


def numbers_on(device: torch.device, numbers: Sequence[float]) -> torch.Tensor:
    """A few numbers as float32 on the device, without waiting for it.

    A copy out of ordinary memory may wait for all that the device has in its queue; out of pinned memory it
    does not.
    """
    pinned = device.type == "cuda" and torch.cuda.is_available()
    return torch.tensor(numbers, dtype=torch.float32, pin_memory=pinned).to(device, non_blocking=True)


def on_device(batch: Batch, device: torch.device) -> Batch:
    """A batch of the CPU's memory on the device; without a mask where every token is real.

    A mask costs a layer a fifth of its operations, and only the CPU can look into it without waiting.
    """
    full = {
        name
        for name, mask in batch.items()
        if name.startswith("attention_mask") and mask.device.type == "cpu" and bool(mask.all())
    }
    batch = {name: x for name, x in batch.items() if name not in full}
    return {name: x.to(device, non_blocking=True) for name, x in batch.items()}


def peak_memory(device: torch.device) -> int:
    """Most bytes in use so far: on a GPU those of its tensors, else those of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def precision(settings: TrainingSettings, device: torch.device) -> torch.dtype:
    """Number format of the products: bf16 where the device computes it fast, unless told otherwise."""
    if settings.precision == "float32":
        return torch.float32
    if settings.precision == "bf16":
        return torch.bfloat16
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        fast = device.type == "cpu" and _cpu_has_bf16()
    return torch.bfloat16 if fast else torch.float32


def autocast(dtype: torch.dtype, device: torch.device) -> torch.autocast:
    """Products in `dtype`; norms and losses stay in float32, and residual sums but on a GPU."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def check_graphs(cuda_graphs: bool, device: torch.device) -> None:
    """Raise UserError where CUDA graphs are asked of a device that has none."""
    if cuda_graphs and device.type != "cuda":
        raise UserError(
            f"training.cuda_graphs=true: this run computes on {device.type}, without any: write false"
        )


def describe(accelerator: Accelerator, dtype: torch.dtype) -> str:
    device = accelerator.device
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{device.type} ({torch.get_num_threads()} threads)"
    count = f"{accelerator.num_processes} × " if accelerator.num_processes > 1 else ""
    return f"{count}{name}, {str(dtype).removeprefix('torch.')}"


def _cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 itself; without, it is slower than float32."""
    if hasattr(torch.cpu, "get_capabilities"):
        known = torch.cpu.get_capabilities()
        return bool(known.get("avx512_bf16") or known.get("amx_bf16"))
    # Before torch 2.11 or so only these questions could be asked.
    questions = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, question, lambda: False)() for question in questions)


Computation = dict[str, str]
"""Each part and what it is, as messages name them."""


def computation_of(config: NystromformerConfig, device: torch.device, dtype: torch.dtype) -> Computation:
    """What this process computes such a model with.

    Args:
        dtype: the number format of the products.
    """
    found = {
        "attention": attention_of(config, device, dtype),
        "products": str(dtype).removeprefix("torch."),
        "torch": version("torch"),
    }
    if device.type == "cuda":
        found["device"] = f"{torch.cuda.get_device_name(device)}, {torch.version.cuda or torch.version.hip}"
    elif device.type == "cpu":
        found["device"] = f"{build.cpu_name()}, {torch.backends.cpu.get_cpu_capability()}"
        found["oneDNN"] = _one_dnn()
        found["threads"] = str(torch.get_num_threads())  # sums are cut by them
    else:
        found["device"] = device.type
    return found


def attention_of(config: NystromformerConfig, device: torch.device, dtype: torch.dtype) -> str:
    """The mechanism where it is PyTorch's operators alone, else which implementation of it."""
    if config.attention != "nystrom":
        return config.attention
    width = config.hidden_size // config.num_attention_heads
    query_BHND = torch.empty(1, 1, config.max_position_embeddings, width, device=device, dtype=dtype)
    return computed_by(query_BHND, options_of(config))


def note_computation(
    progress: Progress,
    config: NystromformerConfig,
    accelerator: Accelerator,
    dtype: torch.dtype,
    say: Callable[[str], None],
) -> None:
    """Write into the run's state what computes it; say where that changed, or differs among processes.

    All processes call it, before the next step; `say` is called on the main one alone.
    """
    every = gather_object([computation_of(config, accelerator.device, dtype)])
    main = every[0]
    if accelerator.is_main_process:
        changed = _differences(progress.computation, main)
        if progress.step and changed:
            told = ", ".join(f"{part} {now} (before: {then})" for part, then, now in changed)
            say(f"from step {progress.step} on computed with {told}: equal within rounding, not bit for bit")
        for line in _odd_processes(every):
            say(line)
    progress.computation = main


def _odd_processes(every: list[Computation]) -> list[str]:
    """A line on the processes that differ from the first in the same way."""
    odd: dict[str, list[int]] = {}
    for rank, theirs in enumerate(every):
        if differences := _differences(every[0], theirs):
            told = ", ".join(f"{part} {now} (process 0: {then})" for part, then, now in differences)
            odd.setdefault(told, []).append(rank)
    lines = []
    for told, ranks in odd.items():
        numbers = ", ".join(map(str, ranks))
        who, whose = (
            (f"process {numbers} of {len(every)} computes", "its")
            if len(ranks) == 1
            else (f"processes {numbers} of {len(every)} compute", "their")
        )
        lines.append(f"{who} with {told}: {whose} numbers are equal within rounding, not bit for bit")
    return lines


def _differences(before: Computation, now: Computation) -> list[tuple[str, str, str]]:
    """(part, before, now) of what both tell and tell differently."""
    return [(part, before[part], now[part]) for part in now if before.get(part, now[part]) != now[part]]


def _one_dnn() -> str:
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return "off"
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA")
    return f"up to {limit}" if limit else "on"
