"""The device and its number format."""

from __future__ import annotations

import os
import resource
import sys
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from nystromformer.errors import UserError
from nystromformer.settings import TrainingSettings

TRAINING_TIMEOUT = timedelta(minutes=30)
"""How long an exchange between training processes may take before all of them end: what is left of a process
that hangs must not hold the others' devices for days. Where they wait for the main one, see `together`."""


def open_accelerator(settings: TrainingSettings) -> Accelerator:
    """Join the other processes, if there are any, and set what holds for the whole process.

    Precision, accumulation and sharding stay with the loop, so Accelerate places and connects only.

    Raises:
        UserError: Accelerate was told to shard the model itself.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise UserError(
            "Accelerate's own FSDP is not used: launch with a configuration for several devices "
            "(distributed_type: MULTI_GPU) and write training.parallel=fsdp"
        )
    if settings.deterministic:
        # Read by CUDA's matrix library when it starts; without it its sums may differ from run to run.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(settings.deterministic)
    torch.backends.cudnn.benchmark = False
    # Memory that is never read need not be filled; filling it costs a pass over every new tensor.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_float32_matmul_precision("high" if settings.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = settings.tf32
    return Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=TRAINING_TIMEOUT)])


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
    """Products in `dtype`; sums, norms and losses stay in float32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


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
