"""One description of every operator written by hand: what PyTorch is told of its shapes and its gradient.

An operator is opaque to torch.compile and to exports, and differentiable once. Its output and the gradients
of queries, keys and values lie in memory as a linear layer writes and reads them. Where nobody but autograd
looks on, a call goes past PyTorch's dispatcher, an eighth of what Python takes for attention on a GPU.

Shapes: B rows, H heads, N positions, D head width, K kernel width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import Any, ClassVar, get_type_hints

import torch
from torch import Tensor
from torch.nn import Parameter

from nystromformer.attention.recording import is_recorded

_KINDS: dict[Any, str] = {Tensor: "Tensor", Tensor | None: "Tensor?", int: "int"}


class Operator(ABC):
    """The inputs of one call. A subclass is a dataclass whose fields they are, tensors before whole numbers,
    of which it says what it computes."""

    name: ClassVar[str]
    """It becomes `nystromformer::name` and `name_backward`."""
    outputs: ClassVar[int] = 1
    """How many tensors `forward` gives: the attention, and what is kept for the backward pass."""
    gradients: ClassVar[Sequence[str]]
    """Names of the tensors that have one."""
    device_types: ClassVar[Sequence[str]]
    keeps_output: ClassVar[bool] = False
    """Whether the attention too is kept, as the first of `kept`."""

    @abstractmethod
    def forward(self) -> Sequence[Tensor]:
        """The attention, and what is kept."""

    @abstractmethod
    def backward(self, grad_out: Tensor, kept: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """A gradient or None for each of `gradients`."""

    @abstractmethod
    def empty(self) -> Sequence[Tensor]:
        """As `forward`, room for its outputs: their shapes, dtypes and strides."""

    def is_suited(self) -> bool:
        """Whether `backward` can be used; where not, `composed` is differentiated."""
        return True

    def composed(self) -> Tensor:
        """The attention by differentiable operators; only of one that is not always suited."""
        raise NotImplementedError


@dataclass(eq=False)
class NystromOperator(Operator):
    """Nyström attention with landmarks by segment-means and the iterative inverse."""

    query: Tensor
    key: Tensor
    value: Tensor
    """(B, H, N, D) each."""
    key_padding_mask: Tensor | None
    """(B, N) bool, True at padding."""
    conv_weight: Tensor | None
    """(H, 1, K, 1)."""
    num_landmarks: int
    iterations: int

    outputs = 6
    gradients = ("query", "key", "value", "conv_weight")


def define(operator: type[Operator]) -> Callable[..., Any]:
    """Register an operator with PyTorch; the function that calls it takes the fields in their order."""
    hints = get_type_hints(operator)
    kinds = {field.name: _KINDS[hints[field.name]] for field in fields(operator)}  # type: ignore[arg-type]
    names = list(kinds)
    places = [names.index(name) for name in operator.gradients]
    count = sum(kind != "int" for kind in kinds.values())
    arguments = [f"{kind} {name}" for name, kind in kinds.items()]

    def schema(before: list[str], kept: list[str], results: int) -> str:
        taken = ", ".join([*before, *arguments[:count], *kept, *arguments[count:]])
        return f"({taken}) -> ({', '.join(['Tensor'] * results)})"

    def on_its_device(*inputs: Any) -> Tensor | tuple[Tensor, ...]:
        with _on(inputs[0].device):
            return _returned(operator(*inputs).forward())

    def registered(name: str, schema: str, function: Callable[..., Any]) -> Any:
        decorate = torch.library.custom_op(
            f"nystromformer::{name}",
            mutates_args=(),
            device_types=tuple(operator.device_types),
            schema=schema,
        )
        return decorate(function)

    def gradients_of(grad_out: Tensor, *inputs: Any) -> Tensor | tuple[Tensor, ...]:
        kept = inputs[count]
        with _on(grad_out.device):
            found = operator(*inputs[:count], *inputs[count + 1 :]).backward(grad_out, kept)
        return _returned([grad_out.new_empty(0) if grad is None else grad for grad in found])

    def empty_gradients(grad_out: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
        return tuple(_empty_gradient(names[place], inputs[place], grad_out) for place in places)

    main = registered(operator.name, schema([], [], operator.outputs), on_its_device)
    main.register_fake(lambda *inputs: _returned(operator(*inputs).empty()))
    backwards = registered(
        f"{operator.name}_backward", schema(["Tensor grad_out"], ["Tensor[] kept"], len(places)), gradients_of
    )
    backwards.register_fake(empty_gradients)

    def keep(ctx: Any, inputs: tuple, output: Tensor | tuple[Tensor, ...]) -> None:
        output = (output,) if isinstance(output, Tensor) else output
        ctx.numbers = inputs[count:]
        ctx.set_materialize_grads(False)  # what is kept has none, and zeros of its size would be written
        ctx.save_for_backward(*inputs[:count], *output[0 if operator.keeps_output else 1 :])

    def differentiate(ctx: Any, grad_out: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad
        if grad_out is None:
            return (None,) * len(wanted)
        saved = ctx.saved_tensors  # once: recomputed activations are handed out a single time
        inputs, kept = saved[:count], list(saved[count:])
        if operator(*inputs, *ctx.numbers).is_suited():
            # Before a second derivative, which there is not, the operator says so.
            direct = _is_unobserved(grad_out) and not torch.is_grad_enabled()
            gradients = (gradients_of if direct else backwards)(grad_out, *inputs, kept, *ctx.numbers)
            found = dict(zip(places, gradients, strict=True))
        else:
            found = _recomputed(operator, grad_out, [*inputs, *ctx.numbers], places)
        return tuple(found.get(place) if wanted[place] else None for place in range(len(wanted)))

    main.register_autograd(differentiate, setup_context=keep)
    dispatched = getattr(torch.ops.nystromformer, operator.name)

    def compute(ctx: Any, *inputs: Any) -> Tensor | tuple[Tensor, ...]:
        output = on_its_device(*inputs)
        keep(ctx, inputs, output)
        return output

    methods = {"forward": staticmethod(compute), "backward": staticmethod(differentiate)}
    function: Any = type(operator.name, (torch.autograd.Function,), methods)

    def call(*inputs: Any) -> Any:
        if _is_unobserved(inputs[0]) and inputs[0].device.type in operator.device_types:
            return function.apply(*inputs) if torch.is_grad_enabled() else on_its_device(*inputs)
        return dispatched(*inputs)

    return call


def _is_unobserved(x: Tensor) -> bool:
    """Whether the call is computed now, on tensors with memory, and nothing records or transforms it."""
    return (
        not torch.compiler.is_compiling()
        and not is_recorded()
        and type(x) in (Tensor, Parameter)
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch._C._are_functorch_transforms_active()
    )


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
    operator: Callable[..., Operator], grad_out: Tensor, inputs: list[Any], places: list[int]
) -> dict[int, Tensor]:
    """The gradients by autograd, at their places; raises RuntimeError where they are to have some in turn."""
    if torch.is_grad_enabled():
        raise RuntimeError("this operator is differentiable once: it has no second derivative")
    leaves = {place: inputs[place].detach() for place in places if inputs[place] is not None}
    for place, leaf in leaves.items():
        inputs[place] = leaf.requires_grad_()
    with torch.enable_grad():
        out = operator(*inputs).composed()
    return dict(zip(leaves, torch.autograd.grad(out, list(leaves.values()), grad_out), strict=True))


def _on(device: torch.device) -> AbstractContextManager:
    """Triton launches on the current device, which need not be that of the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
