"""A run's batches: this process's share of each training step, and of the validation."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from nystromformer.data.examples import Key, PretrainingExamples
from nystromformer.data.layout import Batch
from nystromformer.data.loader import start_server, training_loader
from nystromformer.data.order import GlobalBatches, largest_divisor, validation_batches
from nystromformer.data.storage import PreparedData
from nystromformer.errors import UserError
from nystromformer.settings import PretrainSettings

MOST_TOKENS = 65_536
"""Of a micro-batch whose size is not written."""


class RunBatches:
    """Which examples each step takes, as a pure function of the settings and the process's place."""

    def __init__(
        self, settings: PretrainSettings, prepared: PreparedData, *, rank: int, world_size: int
    ) -> None:
        self._settings = settings.training
        if settings.training.loader_workers:
            start_server()  # while the model is made
        self._rank = rank
        self._world_size = world_size
        share = settings.training.global_batch_size // world_size
        self._micro_batch_size = settings.training.micro_batch_size or self._rows_at_once(
            share, settings.model.max_length
        )
        self._micro_batches = share // self._micro_batch_size
        self._train, self._validation = (
            PretrainingExamples(
                prepared,
                split,
                max_length=settings.model.max_length,
                masking_probability=settings.data.masking_probability,
                masking=settings.data.masking,
                seed=settings.training.seed,
            )
            for split in ("train", "validation")
        )
        if not len(self._validation):
            raise UserError(f"{prepared.folder} holds no validation examples: raise data.validation_fraction")

        self._layout = self._train.layout(static=settings.training.fixed_shapes)

    def _rows_at_once(self, share: int, max_length: int) -> int:
        """What a process takes at once where nothing is said: rows of like length, none padded to another's.

        With `length_groups=0` there is nothing alike, and it is the whole share. Either way no more than fit
        into a GPU: what a model of BERT-base's size keeps of MOST_TOKENS takes about 30 GB.
        """
        groups = largest_divisor(self._settings.global_batch_size, max(self._settings.length_groups, 1))
        rows = min(self._settings.global_batch_size // groups, max(1, MOST_TOKENS // max_length))
        return largest_divisor(share, rows)

    @property
    def examples_at_once(self) -> int:
        """Examples that all processes together compute at one time."""
        return self._micro_batch_size * self._world_size

    def training(self, start_step: int, *, pin_memory: bool) -> Iterator[list[Batch]]:
        """The micro-batches of each step that is still to do, one step at a time."""
        batches = self._global_batches(start_step, self._settings.steps - start_step, self._rank)
        loader = training_loader(
            self._train,
            batches,
            self._layout,
            workers=self._settings.loader_workers,
            pin_memory=pin_memory,
        )
        micro_batches = iter(loader)
        while group := list(itertools.islice(micro_batches, self._micro_batches)):
            yield group

    def of_step(self, step: int) -> list[Batch]:
        """The micro-batches of one step, counted from 0, drawn again."""
        return [
            self._layout(self._train.__getitems__(keys)) for keys in self._global_batches(step, 1, self._rank)
        ]

    def keys_of_step(self, step: int) -> list[Key]:
        """(epoch, index) of every example of one step, over all processes."""
        return self._global_batches(step, 1, 0).global_keys(step)

    def some_training_rows(self, count: int) -> Iterator[Batch]:
        """Training rows from all over the split, one a batch, the same on every process."""
        for number in range(count):
            index = number * len(self._train) // count
            yield self._layout(self._train.__getitems__([(0, index)]))

    def validation(self, count: int | None = None) -> Iterator[tuple[Batch, bool]]:
        """This process's held-out batches, each with whether it counts.

        Every process gets the same number of batches: one that has none left repeats an example that
        does not count, because processes that share one model compute every batch together.

        Args:
            count: examples over all processes; `training.validation_examples` when absent.
        """
        count = min(count or self._settings.validation_examples, len(self._validation))
        keys, first = (
            validation_batches(
                len(self._validation),
                count=count,
                batch_size=self._micro_batch_size,
                rank=rank,
                world_size=self._world_size,
                lengths=self._validation.lengths,
            )
            for rank in (self._rank, 0)  # no process has more than the first
        )
        for number in range(len(first)):
            counts = number < len(keys)
            batch = self._validation.__getitems__(keys[number] if counts else [(0, 0)])
            yield self._layout(batch), counts

    def _global_batches(self, start_step: int, num_steps: int, rank: int) -> GlobalBatches:
        return GlobalBatches(
            len(self._train),
            global_batch_size=self._settings.global_batch_size,
            micro_batch_size=self._micro_batch_size,
            seed=self._settings.seed,
            start_step=start_step,
            num_steps=num_steps,
            rank=rank,
            world_size=self._world_size,
            lengths=self._train.lengths if self._settings.length_groups else None,
            length_groups=self._settings.length_groups,
        )
