"""Nyström attention on a CPU as one operator with its own backward pass.

`kernel/nystrom.cpp` computes it where a compiler made it for this machine (see `native`), `cpu_rows`
elsewhere; both take each row alone, at its own length, without its padding.

The operators are opaque to torch.compile, which keeps what they do with the rows out of its graphs.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from nystromformer.attention import cpu_rows, native


def nystrom_attention_on_cpu(
    query_BHND: Tensor,
    key_BHND: Tensor,
    value_BHND: Tensor,
    key_padding_mask_BN: Tensor | None,
    conv_weight_H1K1: Tensor | None,
    num_landmarks: int,
    iterations: int,
) -> Tensor:
    """`nystrom_attention` with landmarks by segment-means and the iterative inverse; 0 at padding.

    Computed in at least float32, whatever the inputs' dtype and autocast.
    """
    out_BHND, *_ = torch.ops.nystromformer.nystrom_attention(
        query_BHND, key_BHND, value_BHND, key_padding_mask_BN, conv_weight_H1K1, num_landmarks, iterations
    )
    return out_BHND


def how_on_cpu(query_BHND: Tensor, num_landmarks: int) -> str:
    """What computes queries like these, in words."""
    native_takes_it = _implementation(query_BHND, num_landmarks) is native
    return "C++ kernel" if native_takes_it else "PyTorch's operators, row by row"


def _computed_in(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _empty_like_projections(x_BHND: Tensor, zeros: bool) -> Tensor:
    """(B, H, N, D) over (B, N, H, D) memory, as a linear layer writes and reads it."""
    b, h, n, d = x_BHND.shape
    make = x_BHND.new_zeros if zeros else x_BHND.new_empty
    return make(b, n, h, d).transpose(1, 2)


def _kept(query_BHND: Tensor, num_landmarks: int) -> list[Tensor]:
    """Room for each row's Q̃, K̃, Z (native: Zᵀ), B̃ V and native's fifth, see there.

    It stays 0 in a short row, and is no room at all if every row is short.
    """
    b, h, n, d = query_BHND.shape
    m, rows = num_landmarks, b if n > num_landmarks else 0
    shapes = [(rows, h, m, d), (rows, h, m, d), (rows, h, m, m), (rows, h, m, d), (rows, h, m)]
    return [query_BHND.new_zeros(shape, dtype=_computed_in(query_BHND.dtype)) for shape in shapes]


def _implementation(query_BHND: Tensor, num_landmarks: int) -> ModuleType:
    """The module whose `forward` and `backward` compute this; the same for both."""
    return native if native.suits(query_BHND, num_landmarks) else cpu_rows


def _kernels(conv_weight_H1K1: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The heads' kernels of the convolution, (H, K), in the dtype that is computed in."""
    if conv_weight_H1K1 is None:
        return None
    return conv_weight_H1K1.reshape(len(conv_weight_H1K1), -1).to(_computed_in(dtype))


@torch.library.custom_op(
    "nystromformer::nystrom_attention",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor query, Tensor key, Tensor value, Tensor? key_padding_mask, Tensor? conv_weight, "
    "int num_landmarks, int iterations) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _nystrom_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None,
    conv_weight: Tensor | None,
    num_landmarks: int,
    iterations: int,
) -> tuple[Tensor, ...]:
    out_BHND = _empty_like_projections(query, zeros=key_padding_mask is not None)
    kept = _kept(query, num_landmarks)
    weight_HK = _kernels(conv_weight, query.dtype)
    _implementation(query, num_landmarks).forward(
        query, key, value, key_padding_mask, weight_HK, num_landmarks, iterations, out_BHND, kept
    )
    return out_BHND, *kept


@_nystrom_attention.register_fake
def _(query: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    return _empty_like_projections(query, zeros=False), *_kept(query, num_landmarks=inputs[4])


@torch.library.custom_op(
    "nystromformer::nystrom_attention_backward",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor? key_padding_mask, "
    "Tensor? conv_weight, Tensor[] kept, int num_landmarks, int iterations) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
)
def _nystrom_attention_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None,
    conv_weight: Tensor | None,
    kept: Sequence[Tensor],
    num_landmarks: int,
    iterations: int,
) -> tuple[Tensor, ...]:
    grads = [_empty_like_projections(query, zeros=key_padding_mask is not None) for _ in range(3)]
    weight_HK = _kernels(conv_weight, query.dtype)
    grad_HK = _implementation(query, num_landmarks).backward(
        grad_out, query, key, value, key_padding_mask, weight_HK, num_landmarks, iterations, kept, grads
    )
    if conv_weight is None or grad_HK is None:
        return *grads, query.new_empty(0)
    return *grads, grad_HK.view_as(conv_weight).to(conv_weight.dtype)


@_nystrom_attention_backward.register_fake
def _(grad_out: Tensor, query: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    conv_weight = inputs[3]
    grads = [_empty_like_projections(query, zeros=False) for _ in range(3)]
    return *grads, query.new_empty(0) if conv_weight is None else torch.empty_like(conv_weight)


def _keep(ctx: Any, inputs: tuple, output: tuple) -> None:
    *tensors, ctx.num_landmarks, ctx.iterations = inputs
    ctx.save_for_backward(*tensors, *output[1:])


def _differentiate(ctx: Any, grad_out: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, key_padding_mask, conv_weight, *kept = ctx.saved_tensors
    *grads, grad_weight = torch.ops.nystromformer.nystrom_attention_backward(
        grad_out, query, key, value, key_padding_mask, conv_weight, kept, ctx.num_landmarks, ctx.iterations
    )
    return *grads, None, grad_weight if ctx.needs_input_grad[4] else None, None, None


_nystrom_attention.register_autograd(_differentiate, setup_context=_keep)
