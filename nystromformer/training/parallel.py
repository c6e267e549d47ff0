"""How several processes share a model: a copy each (DDP) or a slice of every layer each (FSDP).

Checkpoints hold whole tensors in either case, so that a run may go on the other way, or alone. They are
gathered by hand: torch's `get_model_state_dict` gives tied weights once for each name, and
`get_optimizer_state_dict` names moments otherwise than `optimizer.state_dict()`, which all checkpoints hold.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(model: nn.Module, accelerator: Accelerator) -> None:
    """Cut every layer's parameters, in place, into one slice a process.

    A layer is gathered for its forward and its backward pass and let go after each; its gradients
    are averaged over the processes as DDP averages them. To be called before the optimizer is built,
    which then keeps moments of the slices alone.
    """
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for layer in model.get_submodule("nystromformer.encoder.layer").children():
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


@contextlib.contextmanager
def accumulating(model: nn.Module) -> Iterator[None]:
    """Within it, a backward pass adds to the process's own gradients and exchanges nothing."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)
    elif isinstance(model, nn.parallel.DistributedDataParallel):
        with model.no_sync():
            yield
    else:
        yield


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or all processes' slices of it put together: to be called on all of them."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, own: Tensor) -> Tensor:
    """A whole tensor as this process holds `own`: all of it, or its slice."""
    if not isinstance(own, DTensor):
        return tensor
    return distribute_tensor(tensor.to(own.device), own.device_mesh, own.placements)


def whole_weights(model: nn.Module, *, keep: bool = True) -> dict[str, Tensor]:
    """Every parameter and saved buffer under its first name, whole; nothing where not `keep`.

    Whole tensors are moved off the device one by one when they were slices, so that a model larger
    than one device's memory passes. All processes call it; `keep` is for the one that writes.
    """
    saved = model.state_dict().keys()
    tensors = [*model.named_parameters(), *(item for item in model.named_buffers() if item[0] in saved)]
    weights = {}
    for name, tensor in tensors:
        full = whole(tensor.detach())
        if keep:
            weights[name] = (full.cpu() if isinstance(tensor, DTensor) else full).contiguous()
    return weights


def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy whole tensors into the model, each under its first name.

    Raises:
        RuntimeError: a tensor is unknown, missing or of another shape.
    """
    whole_and_all = StateDictOptions(full_state_dict=True, strict=True)
    set_model_state_dict(model, {**weights}, options=whole_and_all)


def whole_moments(optimizer: torch.optim.Optimizer, *, keep: bool = True) -> dict[str, Any]:
    """The optimizer's state with whole tensors; see `whole_weights`."""
    content = optimizer.state_dict()
    state: dict[int, dict[str, Any]] = {}
    for number, moments in content["state"].items():
        full = {
            name: whole(moment).cpu() if isinstance(moment, DTensor) else moment
            for name, moment in moments.items()
        }
        if keep:
            state[number] = full
    return {**content, "state": state}


def load_moments(optimizer: torch.optim.Optimizer, content: dict[str, Any]) -> None:
    """Take over the state that `whole_moments` gave.

    Raises:
        ValueError: it is of other parameters.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, moments in content["state"].items():
        for name, moment in moments.items():
            if moment.dim():  # the count of steps is the same number for every slice
                if moment.shape != parameters[number].shape:
                    raise ValueError(f"{name} of parameter {number} has shape {tuple(moment.shape)}")
                moments[name] = like(moment, parameters[number])
    optimizer.load_state_dict(content)
