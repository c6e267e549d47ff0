"""The processes that draw a run's batches ahead of the training."""

from __future__ import annotations

import os
import threading
import time
from functools import partial

import torch
from torch.utils.data import DataLoader

from nystromformer.data.examples import PretrainingExamples
from nystromformer.data.layout import Batch, Layout
from nystromformer.data.order import GlobalBatches


def training_loader(
    examples: PretrainingExamples,
    batches: GlobalBatches,
    layout: Layout,
    *,
    workers: int,
    pin_memory: bool = False,
) -> DataLoader[Batch]:
    """Batches in the sampler's order, drawn and laid out by `workers` processes; 0: by this process.

    With workers, a script must start under `if __name__ == "__main__":`, because the processes are
    not forked: forking a process that already runs threads (CUDA's, the tokenizer's) can hang.
    """
    return DataLoader(
        examples,
        batch_sampler=batches,
        collate_fn=layout,  # type: ignore[arg-type]  # `__getitems__` gives a batch already, and no list
        num_workers=workers,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        prefetch_factor=4 if workers else None,
        multiprocessing_context=_process_context() if workers else None,
        worker_init_fn=partial(_end_with, os.getpid()),
        # Its workers' seeds, which nothing here uses, would otherwise be drawn from the global generator:
        # dropout after a resume would differ from that of a run that went on.
        generator=torch.Generator(),
    )


def _process_context() -> torch.multiprocessing.multiprocessing.context.BaseContext:
    methods = torch.multiprocessing.get_all_start_methods()
    if "forkserver" not in methods:
        return torch.multiprocessing.get_context("spawn")
    context = torch.multiprocessing.get_context("forkserver")
    # The server imports torch once; the workers start from it at once.
    context.set_forkserver_preload(["nystromformer.data.examples"])
    return context


def _end_with(trainer: int, worker: int) -> None:
    """Have a loader process end when the training process does, however that was killed.

    torch looks whether its parent lives, and the parent of these is the fork server. Left behind, they
    would keep their memory, and keep a pipe open that somebody reads the training's output from.
    """

    def watch() -> None:
        while True:
            time.sleep(1)
            try:
                os.kill(trainer, 0)  # signal 0 only asks whether the process exists
            except ProcessLookupError:
                os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
