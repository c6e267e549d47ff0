"""The processes that draw a run's batches ahead of the training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing import forkserver
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from nystromformer.data.layout import Batch
from nystromformer.data.processes import end_with_parent


class TrainingLoader:
    """A run's batches, in order; iterating again begins again, with the same processes."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._loader:
            yield batch.opened() if isinstance(batch, _Parcel) else batch


def as_it_is(batch: Batch) -> Batch:
    """The layout of batches that their data set has laid out."""
    return batch


def training_loader(
    examples: Dataset[Batch],
    batches: Iterable[Any],
    layout: Callable[[Batch], Batch] = as_it_is,
    *,
    workers: int,
    pin_memory: bool = False,
) -> TrainingLoader:
    """Batches in the sampler's order, drawn and laid out by `workers` processes; 0: by this process.

    The sampler has a length, and gives what `__getitems__` of the examples takes for each batch.

    With workers, a script must start under `if __name__ == "__main__":`, because the processes are
    not forked: forking a process that already runs threads (CUDA's, the tokenizer's) can hang.
    """
    loader = DataLoader(
        examples,
        batch_sampler=batches,
        # What `__getitems__` returns is a batch; torch's type says list, for its own collation.
        collate_fn=partial(_parcel, layout) if workers else layout,  # type: ignore[arg-type]
        num_workers=workers,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        prefetch_factor=4 if workers else None,
        multiprocessing_context=_process_context() if workers else None,
        worker_init_fn=_begin,
        # Its workers' seeds, which nothing here uses, would otherwise be drawn from the global generator:
        # dropout after a resume would differ from that of a run that went on.
        generator=torch.Generator(),
    )
    return TrainingLoader(loader)


def start_server() -> None:
    """Start what loader processes start from, without waiting for it: it takes a second to import torch."""
    if _process_context().get_start_method() == "forkserver":
        forkserver.ensure_running()


@dataclass(frozen=True)
class _Parcel:
    """A batch on its way between processes as one piece of shared memory: each piece costs a file's
    opening, sending and mapping, more than a small batch takes to draw."""

    content: torch.Tensor
    """(sum of the sizes,)"""
    shapes: dict[str, torch.Size]

    def opened(self) -> Batch:
        """The batch, whose tensors are views of the one."""
        sizes = [shape.numel() for shape in self.shapes.values()]
        parts = self.content.split(sizes)
        return {
            name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def pin_memory(self) -> _Parcel:
        """What DataLoader calls in its pinning thread."""
        return _Parcel(self.content.pin_memory(), self.shapes)


def _parcel(layout: Callable[[Batch], Batch], batch: Batch) -> _Parcel:
    batch = layout(batch)
    shapes = {name: x.shape for name, x in batch.items()}
    return _Parcel(torch.cat([x.flatten() for x in batch.values()]), shapes)


def _process_context() -> torch.multiprocessing.multiprocessing.context.BaseContext:
    methods = torch.multiprocessing.get_all_start_methods()
    if "forkserver" not in methods:
        return torch.multiprocessing.get_context("spawn")
    context = torch.multiprocessing.get_context("forkserver")
    # The server imports torch once; the workers start from it at once.
    context.set_forkserver_preload(["nystromformer.data.loader"])
    return context


def _begin(worker: int) -> None:
    end_with_parent()  # torch looks whether the process that started this one lives: that is the fork server
