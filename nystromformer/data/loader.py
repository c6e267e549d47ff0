"""The order of the batches, and the processes that draw them ahead of the training."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from nystromformer.data import stateless_random as random
from nystromformer.data.examples import Key, PretrainingExamples
from nystromformer.data.stateless_random import Stream
from nystromformer.errors import UserError

Batch = dict[str, torch.Tensor]

_FEISTEL_ROUNDS = 8  # with 6, the orders of a handful of examples are visibly not equally likely


def shuffled(
    positions: NDArray[np.int64], epochs: NDArray[np.int64], *, num_examples: int, seed: int
) -> NDArray[np.int64]:
    """The example at each position of each epoch's random order: (N,), (N,) → (N,).

    For one epoch this is a permutation of 0 … num_examples - 1, computed point by point: no table,
    so that millions of examples cost no memory and a resumed run no time. A Feistel network permutes
    the next power of four; results beyond the examples are permuted again until they are inside.
    """
    half_bits = max(((num_examples - 1).bit_length() + 1) // 2, 1)
    half = np.uint64(half_bits)
    mask = np.uint64(2**half_bits - 1)
    keys = random.bits(random.row_keys(seed, epochs, 0), Stream.SHUFFLE)
    round_keys = [random.mix(keys + np.uint64(number)) for number in range(_FEISTEL_ROUNDS)]
    result = positions.astype(np.uint64)
    outside = np.ones(len(result), bool)
    while outside.any():
        left, right = result[outside] >> half, result[outside] & mask
        for key in round_keys:
            left, right = right, left ^ (random.mix(right ^ key[outside]) & mask)
        result[outside] = left << half | right
        outside = result >= num_examples
    return result.astype(np.int64)


class GlobalBatches:
    """A batch sampler whose global batches are the same for any number of processes.

    Global step t takes examples [t·G, (t+1)·G) of the endless sequence of epochs, each epoch in its
    own random order; so a batch may cross an epoch's end and no example is skipped. Process `rank` of
    `world_size` takes rows rank, rank + world_size, … of each global batch, cut into micro-batches.

    Iterating yields lists of keys (epoch, index): the micro-batches of step `start_step`, then those
    of the next, for `num_steps` steps. To resume after step t, pass start_step=t.
    """

    def __init__(
        self,
        num_examples: int,
        *,
        global_batch_size: int,
        micro_batch_size: int,
        seed: int,
        num_steps: int,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if num_examples < 1:
            raise UserError("there are no training examples to draw batches from: prepare a larger corpus")
        if global_batch_size % world_size:
            raise UserError(
                f"global_batch_size={global_batch_size} is not divisible by the {world_size} processes: "
                f"write a multiple of {world_size}"
            )
        share = global_batch_size // world_size
        if micro_batch_size < 1 or share % micro_batch_size:
            raise UserError(
                f"micro_batch_size={micro_batch_size} does not divide the {share} examples of one process: "
                f"write a divisor of {share}"
            )
        self._num_examples = num_examples
        self._global_batch_size = global_batch_size
        self._micro_batch_size = micro_batch_size
        self._seed = seed
        self._steps = range(start_step, start_step + num_steps)
        self._rank = rank
        self._world_size = world_size

    @property
    def micro_batches_per_step(self) -> int:
        return self._global_batch_size // self._world_size // self._micro_batch_size

    def __len__(self) -> int:
        return len(self._steps) * self.micro_batches_per_step

    def __iter__(self) -> Iterator[list[Key]]:
        for step in self._steps:
            keys = self.rank_keys(step)
            for start in range(0, len(keys), self._micro_batch_size):
                yield keys[start : start + self._micro_batch_size]

    def rank_keys(self, step: int) -> list[Key]:
        """This process' rows of global batch `step`."""
        first = step * self._global_batch_size
        places = np.arange(first + self._rank, first + self._global_batch_size, self._world_size)
        epochs, positions = np.divmod(places, self._num_examples)
        indices = shuffled(positions, epochs, num_examples=self._num_examples, seed=self._seed)
        return list(zip(epochs.tolist(), indices.tolist(), strict=True))


def training_loader(
    examples: PretrainingExamples, batches: GlobalBatches, *, workers: int, pin_memory: bool = False
) -> DataLoader[Batch]:
    """Batches in the sampler's order, drawn by `workers` processes; 0 draws them in this process.

    With workers, a script must start under `if __name__ == "__main__":`, because the processes are
    not forked: forking a process that already runs threads (CUDA's, the tokenizer's) can hang.
    """
    return DataLoader(
        examples,
        batch_sampler=batches,
        collate_fn=_already_collated,
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


def _already_collated(batch: Any) -> Any:
    # What `__getitems__` returns is the batch; torch's type says list, for its own collation.
    return batch


def validation_batches(
    examples: PretrainingExamples, *, count: int, batch_size: int, rank: int = 0, world_size: int = 1
) -> list[list[Key]]:
    """Keys of at most `count` examples spread evenly over the split, always the same: epoch 0.

    Process `rank` takes every `world_size`-th, in batches of at most `batch_size`. Over all processes
    the keys are the same for any `world_size`; one process can have a batch fewer than another.
    """
    count = min(count, len(examples))
    indices = [number * len(examples) // count for number in range(rank, count, world_size)]
    return [
        [(0, index) for index in indices[start : start + batch_size]]
        for start in range(0, len(indices), batch_size)
    ]
