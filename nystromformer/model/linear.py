"""Linear layers by oneDNN's float32 product where PyTorch's own is slow.

PyTorch multiplies float32 matrices on a CPU by MKL, which keeps to 256-bit vectors on AMD's processors;
oneDNN, which PyTorch holds too, uses their 512 bits and takes about half the time, forward and backward.
Everything else (other devices and precisions, autocast, small products) is `torch.nn.Linear`'s.

The layers themselves are plain `torch.nn.Linear`, so that whatever looks for those finds them
(`quantize_dynamic` takes no subclass); what is put in the place of one, or hung on one, is honoured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules import module as torch_module
from transformers.activations import GELUActivation

from nystromformer.attention.recording import is_recorded

WORTH_IT = 2**22
"""Multiplications of a product below which the detour costs more than it gains."""


def linear(layer: nn.Module, input: Tensor, activation: nn.Module | None = None) -> Tensor:
    """`activation(layer(input))`, (..., in_features) → (..., out_features), to rounding.

    Args:
        layer: a `torch.nn.Linear`, or what someone has put in its place: that is called as it is.
        activation: where it is exact GELU and nothing is kept for a backward pass, it is computed within
            the product, to the same bits, and saves a reading and writing of the result.
    """
    if ONEDNN_IS_FASTER and isinstance(layer, nn.Linear) and _suits(layer, input) and _is_plain(layer):
        if (
            isinstance(activation, GELUActivation)
            and not torch.is_grad_enabled()
            and _is_called_alone(activation)
        ):
            product = _times_transpose(input.flatten(0, -2), layer.weight, layer.bias, "gelu", "none")
            return product.view(*input.shape[:-1], -1)
        out = _OneDNNLinear.apply(input, layer.weight, layer.bias)
    else:
        out = layer(input)
    return out if activation is None else activation(out)


def _suits(layer: nn.Linear, input: Tensor) -> bool:
    """Whether oneDNN's product is worth it, and no record is being made that another machine may run."""
    return (
        input.dim() > 1
        and input.device.type == "cpu"
        and input.dtype == layer.weight.dtype == torch.float32
        and not is_recorded()
        and input.numel() * layer.out_features >= WORTH_IT
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
    )


def _is_plain(layer: nn.Linear) -> bool:
    """Whether calling the layer would do no more than multiply: no subclass, no hook, no replaced forward
    (Accelerate's offloading), no weight of another kind (sharded, quantized)."""
    return type(layer) is nn.Linear and type(layer.weight) is nn.Parameter and _is_called_alone(layer)


def _is_called_alone(module: nn.Module) -> bool:
    """Whether nobody hung anything on the module's call."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
        or torch_module._has_any_global_hook()
    )


class _OneDNNLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(input, weight_OI)
        ctx.has_bias = bias_O is not None
        return _times_transpose(input.flatten(0, -2), weight_OI, bias_O).view(*input.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight_OI = ctx.saved_tensors
        grad_RO, input_RI = grad.flatten(0, -2), input.flatten(0, -2)
        wants_input, wants_weight, wants_bias = ctx.needs_input_grad
        return (
            _times_transpose(grad_RO, weight_OI.t()).view_as(input) if wants_input else None,
            _weight_gradient(grad_RO, input_RI) if wants_weight else None,
            grad_RO.sum(dim=0) if wants_bias and ctx.has_bias else None,
        )


def _weight_gradient(grad_RO: Tensor, input_RI: Tensor) -> Tensor:
    """gradᵀ · input, (O, I). The operator copies what is turned on its left: let that be the narrower one."""
    if grad_RO.shape[1] <= input_RI.shape[1]:
        return _times_transpose(grad_RO.t(), input_RI.t())
    return _times_transpose(input_RI.t(), grad_RO.t()).t().contiguous()


def _times_transpose(
    left: Tensor, right: Tensor, bias: Tensor | None = None, then: str = "none", how: str = ""
) -> Tensor:
    """left · rightᵀ + bias; the operator is what torch.compile makes of linear layers on a CPU."""
    return torch.ops.mkldnn._linear_pointwise(left, right, bias, then, [], how)


def _onednn_is_faster() -> bool:
    """Whether this is an AMD processor with 512-bit vectors, and PyTorch has both libraries.

    A fact of the machine, not a timing: a resumed run has to take the same path.
    """
    try:
        vendor = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return (
        "AuthenticAMD" in vendor
        and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
        and torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


ONEDNN_IS_FASTER = _onednn_is_faster()
