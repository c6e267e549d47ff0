"""In which number format products are computed: PyTorch's autocast and TF32, asked and switched off.

Both exist in two forms or on some devices only; nothing else in the package asks PyTorch about them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor


def has_autocast(device: torch.device) -> bool:
    """Whether PyTorch has autocast there at all; where it has not, asking for its state raises."""
    return device.type != "meta"


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Within it, products of tensors on this device are computed in the tensors' own type."""
    return torch.autocast(x.device.type, enabled=False) if has_autocast(x.device) else nullcontext()


def product_dtype(x: Tensor) -> torch.dtype:
    """What autocast would convert this factor of a product to: all floating-point types but float64."""
    kind = x.device.type
    if x.dtype == torch.float64 or not has_autocast(x.device) or not torch.is_autocast_enabled(kind):
        return x.dtype
    return torch.get_autocast_dtype(kind)


def as_product(x: Tensor) -> Tensor:
    """The tensor as autocast would convert it: once, where several products read it."""
    return x.to(product_dtype(x))


def at_least_float32(x: Tensor) -> torch.dtype:
    """In which type to compute what half precision would spoil: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def tf32_allowed() -> bool:
    """Whether PyTorch may round the factors of float32 products on a GPU to TF32's 10 bits.

    PyTorch before 2.9 has `allow_tf32`; since then reading that raises where a program has used the newer
    `fp32_precision`, which follows both.
    """
    matmul = torch.backends.cuda.matmul
    precision = getattr(matmul, "fp32_precision", None)
    return matmul.allow_tf32 if precision is None else precision == "tf32"


def allow_tf32(allowed: bool) -> None:
    """Let products and cuDNN's convolutions on GPUs use TF32, or not.

    For products, `set_float32_matmul_precision` keeps both forms of the flag in agreement, in every PyTorch
    from 2.6 on; for convolutions `allow_tf32` does, unless a program has asked for TF32 everywhere by the
    newer form. Only then is that used here too: PyTorch's own look at the flag, in an export for instance,
    refuses both at once.
    """
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    cudnn = torch.backends.cudnn
    cudnn.allow_tf32 = allowed
    for name in ("conv", "rnn"):
        if hasattr(cudnn, name) and not allowed and getattr(cudnn, name).fp32_precision == "tf32":
            getattr(cudnn, name).fp32_precision = "ieee"


@contextmanager
def full_float32(x: Tensor) -> Iterator[None]:
    """Float32 products of the tensors' own type, neither TF32 nor autocast."""
    matmul = torch.backends.cuda.matmul
    flag, full = ("fp32_precision", "ieee") if hasattr(matmul, "fp32_precision") else ("allow_tf32", False)
    before = getattr(matmul, flag)
    setattr(matmul, flag, full)
    try:
        with without_autocast(x):
            yield
    finally:
        setattr(matmul, flag, before)
