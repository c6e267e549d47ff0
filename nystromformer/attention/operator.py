"""One description of every operator written by hand: what PyTorch is told of its shapes and its gradient.

An operator is opaque to torch.compile and to exports, and differentiable once. Its output and the gradients
of queries, keys and values lie in memory as a linear layer writes and reads them.

Shapes: B rows, H heads, N positions, D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def define(
    name: str,
    tensors: Sequence[str],
    numbers: Sequence[str],
    *,
    outputs: int,
    gradients: Sequence[str],
    device_types: Sequence[str],
    forward: Callable[..., Sequence[Tensor]],
    backward: Callable[..., Sequence[Tensor | None]],
    empty: Callable[..., Sequence[Tensor]],
    keeps_output: bool = False,
    otherwise: Callable[..., Callable[..., Tensor] | None] | None = None,
) -> Callable[..., Any]:
    """Register `nystromformer::name` and `name_backward`.

    Args:
        tensors: names of the tensors it takes, query, key and value first; `?` behind one that may be None.
        numbers: names of the whole numbers that follow them.
        outputs: how many tensors `forward` gives: the attention, and what is kept for the backward pass.
        gradients: names of the tensors that have one.
        forward: of (*tensors, *numbers).
        backward: of (grad_out, *tensors, kept, *numbers), a gradient or None for each of `gradients`.
        empty: as `forward`, room for its outputs: their shapes, dtypes and strides.
        keeps_output: whether the attention too is kept, as the first of `kept`.
        otherwise: of (*tensors, *numbers), what computes the attention by differentiable operators where
            `backward` cannot be used; None where it can.
    """
    known = [name.removesuffix("?") for name in tensors]
    places = [known.index(name) for name in gradients]
    count = len(tensors)
    arguments = [f"Tensor{'?' if name.endswith('?') else ''} {name.removesuffix('?')}" for name in tensors]
    counted = [f"int {name}" for name in numbers]

    def schema(before: list[str], kept: list[str], results: int) -> str:
        taken = ", ".join([*before, *arguments, *kept, *counted])
        return f"({taken}) -> ({', '.join(['Tensor'] * results)})"

    def operator(name: str, schema: str, function: Callable[..., Sequence[Tensor]]) -> Any:
        def on_its_device(*inputs: Any) -> Tensor | tuple[Tensor, ...]:
            with _on(inputs[0].device):
                return _returned(function(*inputs))

        decorate = torch.library.custom_op(
            f"nystromformer::{name}", mutates_args=(), device_types=tuple(device_types), schema=schema
        )
        return decorate(on_its_device)

    def gradients_of(grad_out: Tensor, *inputs: Any) -> list[Tensor]:
        found = backward(grad_out, *inputs)
        return [grad_out.new_empty(0) if grad is None else grad for grad in found]

    def empty_gradients(grad_out: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
        return tuple(_empty_gradient(known[place], inputs[place], grad_out) for place in places)

    main = operator(name, schema([], [], outputs), forward)
    main.register_fake(lambda *inputs: _returned(empty(*inputs)))
    backwards = operator(
        f"{name}_backward", schema(["Tensor grad_out"], ["Tensor[] kept"], len(gradients)), gradients_of
    )
    backwards.register_fake(empty_gradients)

    def keep(ctx: Any, inputs: tuple, output: Tensor | tuple[Tensor, ...]) -> None:
        output = (output,) if isinstance(output, Tensor) else output
        ctx.numbers = inputs[count:]
        ctx.set_materialize_grads(False)  # what is kept has none, and zeros of its size would be written
        ctx.save_for_backward(*inputs[:count], *output[0 if keeps_output else 1 :])

    def differentiate(ctx: Any, grad_out: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad
        if grad_out is None:
            return (None,) * len(wanted)
        saved = ctx.saved_tensors  # once: recomputed activations are handed out a single time
        inputs, kept = saved[:count], list(saved[count:])
        composed = otherwise(*inputs, *ctx.numbers) if otherwise is not None else None
        if composed is not None:
            found = _recomputed(composed, grad_out, list(inputs), ctx.numbers, places)
        else:
            found = dict(zip(places, backwards(grad_out, *inputs, kept, *ctx.numbers), strict=True))
        return tuple(found.get(place) if wanted[place] else None for place in range(len(wanted)))

    main.register_autograd(differentiate, setup_context=keep)
    return getattr(torch.ops.nystromformer, name)


def _returned(found: Sequence[Tensor]) -> Tensor | tuple[Tensor, ...]:
    """As PyTorch's operators return results: one alone is not in a tuple."""
    return tuple(found) if len(found) > 1 else found[0]


def empty_like_projections(x_BHND: Tensor, zeros: bool = False) -> Tensor:
    """(B, H, N, D) over (B, N, H, D) memory, as a linear layer writes and reads it."""
    b, h, n, d = x_BHND.shape
    make = x_BHND.new_zeros if zeros else x_BHND.new_empty
    return make(b, n, h, d).transpose(1, 2)


def _empty_gradient(name: str, x: Tensor | None, grad_out: Tensor) -> Tensor:
    if x is None:
        return grad_out.new_empty(0)
    return empty_like_projections(x) if name in ("query", "key", "value") else x.new_empty(x.shape)


def _recomputed(
    function: Callable[..., Tensor], grad_out: Tensor, inputs: list[Any], numbers: tuple, places: list[int]
) -> dict[int, Tensor]:
    """The gradients by autograd, at their places; raises RuntimeError where they are to have some in turn."""
    if torch.is_grad_enabled():
        raise RuntimeError("this operator is differentiable once: it has no second derivative")
    leaves = {place: inputs[place].detach() for place in places if inputs[place] is not None}
    for place, leaf in leaves.items():
        inputs[place] = leaf.requires_grad_()
    with torch.enable_grad():
        out = function(*inputs, *numbers)
    return dict(zip(leaves, torch.autograd.grad(out, list(leaves.values()), grad_out), strict=True))


def _on(device: torch.device) -> AbstractContextManager:
    """Triton launches on the current device, which need not be that of the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
