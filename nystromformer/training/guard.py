"""Steps whose loss or gradient is not finite: found without waiting, explained, and counted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn

from nystromformer.data.layout import Batch
from nystromformer.errors import UserError
from nystromformer.training.devices import on_device
from nystromformer.training.objective import Batches
from nystromformer.training.step import GradientFault


class NotFinite(UserError):
    """Training came to numbers that are not finite more often than allowed."""


@dataclass(frozen=True)
class Fault:
    """One step that changed nothing because its gradient was not finite."""

    step: int
    """The optimizer step, counted from 1."""
    examples: list[tuple[int, int]]
    """(epoch, index) of every example in the global batch."""
    parameter: str
    """Where the gradient stopped being finite, coming from the loss."""
    layer: str | None
    """The first module whose output is not finite when the batch is computed again; None if all are."""

    def __str__(self) -> str:
        indices = ", ".join(str(index) for _, index in self.examples[:8])
        more = f" and {len(self.examples) - 8} more" if len(self.examples) > 8 else ""
        layer = (
            f"the output of {self.layer} is not finite"
            if self.layer
            else "computed again, every output is finite"
        )
        return (
            f"step {self.step} skipped, its gradient is not finite: first in {self.parameter}; {layer}; "
            f"examples {indices}{more} of epoch {self.examples[0][0]}"
        )

    def event(self) -> dict[str, Any]:
        return {
            "kind": "skipped",
            "step": self.step,
            "examples": self.examples,
            "parameter": self.parameter,
            "layer": self.layer,
        }


def first_offending_layer(
    model: nn.Module,
    batches: list[Batch],
    autocast: torch.autocast,
    compute: Callable[[nn.Module, Batch], Any],
) -> str | None:
    """The first module of any process, in order of computation, whose output is not finite.

    A forward pass without dropout over the step's batches. The weights may be a few steps further by
    now, since a fault is only read when figures are. All processes call it together.
    """
    found: list[str] = []

    def look_at(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and not output.isfinite().all():
                found.append(name)

        return look

    hooks = [module.register_forward_hook(look_at(name)) for name, module in model.named_modules() if name]
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        # A compiled forward would pass the hooks by.
        with torch.no_grad(), autocast, torch.compiler.set_stance("force_eager"):
            for batch in batches:
                compute(model, on_device(batch, device))
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    everywhere: list[str] = gather_object(found[:1])
    return everywhere[0] if everywhere else None


class Guard:
    """Keeps what each step said about its gradient until the figures are read, then judges.

    Args:
        compute: a forward pass on a micro-batch that is on the device.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        autocast: torch.autocast,
        compute: Callable[[nn.Module, Batch], Any] = lambda model, batch: model(**batch),
    ) -> None:
        self._model = model
        self._batches = batches
        self._autocast = autocast
        self._compute = compute
        self._unread: list[tuple[int, GradientFault]] = []

    def note(self, step: int, fault: GradientFault) -> None:
        """Keep a step's fault."""
        self._unread.append((step, fault))

    def read(self) -> list[Fault]:
        """The steps since the last call that were skipped; waits for the device."""
        unread, self._unread = self._unread, []
        if not unread:
            return []
        numbers = torch.stack([fault.number for _, fault in unread]).tolist()
        return [
            self._explain(step, fault.parameters[number])
            for (step, fault), number in zip(unread, numbers, strict=True)
            if number >= 0
        ]

    def _explain(self, step: int, parameter: str) -> Fault:
        batches = self._batches.of_step(step - 1)
        layer = first_offending_layer(self._model, batches, self._autocast, self._compute)
        return Fault(step, self._batches.keys_of_step(step - 1), parameter, layer)


def check_finite(what: str, *losses: float, newest: str | None, remedy: str) -> None:
    """Stop where a mean loss is not finite although every gradient was.

    Args:
        newest: the newest checkpoint.
        remedy: what a person can do.

    Raises:
        NotFinite: naming both.
    """
    if not all(map(math.isfinite, losses)):
        raise NotFinite(f"{what} is not finite: {_good(newest)}; {remedy}")


def check_count(skipped: int, allowed: int, *, newest: str | None, remedy: str) -> None:
    """Stop where more steps were skipped than `training.max_skipped_steps` allows; see `check_finite`."""
    if skipped > allowed:
        raise NotFinite(
            f"{skipped} steps had a gradient that is not finite, training.max_skipped_steps={allowed}: "
            f"{_good(newest)}; {remedy}, or a higher training.max_skipped_steps to go on with this one"
        )


def _good(newest: str | None) -> str:
    return f"the last good checkpoint is {newest}" if newest else "there is no checkpoint yet"
