"""A run's batches: this process's share of each training step, and of the validation."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Dataset

from nystromformer.data.examples import Key, PretrainingExamples
from nystromformer.data.layout import Batch
from nystromformer.data.loader import start_server, training_loader
from nystromformer.data.order import GlobalBatches, largest_divisor, mixture_of, validation_batches
from nystromformer.data.storage import PreparedData
from nystromformer.errors import UserError
from nystromformer.settings import PretrainSettings
from nystromformer.training.phases import Drawing, Plan, Stretch, plan_of

MOST_TOKENS = 65_536
"""Of a micro-batch whose size is not written."""
MEASURED = 2**16
"""Rows, spread over the corpus, whose lengths say how many steps so many tokens are."""

Drawn = tuple[Drawing, list[Key]]
"""A micro-batch as it is asked for: how, and which examples."""


class _LaidOut(Dataset[Batch]):
    """Micro-batches as the training takes them, drawn in each of a run's ways."""

    def __init__(self, ways: Sequence[Drawing], examples: PretrainingExamples, *, static: bool) -> None:
        drawn = {way: examples.as_drawn(way.max_length, way.masking_probability) for way in ways}
        self._ways = {way: (each, each.layout(static=static)) for way, each in drawn.items()}

    def examples(self, way: Drawing) -> PretrainingExamples:
        return self._ways[way][0]

    def __getitems__(self, drawn: Drawn) -> Batch:
        examples, layout = self._ways[drawn[0]]
        return layout(examples.__getitems__(drawn[1]))


class _Asked:
    """What a loader is to draw, micro-batch after micro-batch: a batch sampler."""

    def __init__(self, batches: RunBatches, start_step: int) -> None:
        self._batches = batches
        self._start = start_step

    def __len__(self) -> int:
        stretches = self._batches.plan.stretches
        left = (max(each.last_step - max(each.first_step, self._start), 0) for each in stretches)
        return sum(
            steps * self._batches.micro_batches(each) for steps, each in zip(left, stretches, strict=True)
        )

    def __iter__(self) -> Iterator[Drawn]:
        for stretch in self._batches.plan.stretches:
            if stretch.last_step > self._start:
                for keys in self._batches.order(stretch, max(stretch.first_step, self._start)):
                    yield stretch.drawing, keys


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
        data, length = settings.data, settings.model.max_length
        masked = {
            "train": data.masking_probability,
            "validation": data.validation_masking_probability or data.masking_probability,
        }
        self._train, self._validation = (
            PretrainingExamples(
                prepared,
                split,
                max_length=length,
                masking_probability=masked[split],
                masking=data.masking,
                seed=settings.training.seed,
                sentence_order=data.sentence_order,
            )
            for split in masked
        )
        if not len(self._validation):
            raise UserError(f"{prepared.folder} holds no validation examples: raise data.validation_fraction")
        weights = {tuple(phase.weights) for phase in settings.training.filled_phases()}
        self._mixtures = {each: mixture_of(prepared, each) for each in weights}
        self.plan: Plan = plan_of(
            settings.training,
            max_length=length,
            masking_probability=data.masking_probability,
            row_tokens=self._row_tokens,
        )
        """Of the steps."""
        ways = dict.fromkeys(stretch.drawing for stretch in self.plan.stretches)
        self._drawn = _LaidOut(list(ways), self._train, static=settings.training.fixed_shapes)
        self._layout = self._train.layout(static=settings.training.fixed_shapes)
        held_out = self._train.as_drawn(length, masked["validation"])  # of the training rows' widths
        self._held_out_layout = held_out.layout(static=settings.training.fixed_shapes)

    def _row_tokens(self, drawing: Drawing) -> float:
        """Real tokens of a row, the mean over places spread evenly over an epoch."""
        examples = self._train.as_drawn(drawing.max_length, drawing.masking_probability)
        mixture = self._mixtures[drawing.weights]
        places = len(examples if mixture is None else mixture)
        count = min(places, MEASURED)
        spread = np.arange(count) * places // max(count, 1)
        if mixture is not None:
            spread = mixture.keys(np.zeros_like(spread), spread, self._settings.seed)[:, 1]
        return float(examples.lengths(spread).mean())

    def micro_batch_size(self, stretch: Stretch) -> int:
        """What a process takes at once where nothing is said: rows of like length, none padded to another's.

        With `length_groups=0` there is nothing alike, and it is the whole share. Either way no more than fit
        into a GPU: what a model of BERT-base's size keeps of MOST_TOKENS takes about 30 GB.
        """
        if self._settings.micro_batch_size:
            return self._settings.micro_batch_size
        groups = largest_divisor(stretch.batch_size, max(self._settings.length_groups, 1))
        rows = min(stretch.batch_size // groups, max(1, MOST_TOKENS // stretch.drawing.max_length))
        return largest_divisor(stretch.batch_size // self._world_size, rows)

    def micro_batches(self, stretch: Stretch) -> int:
        """How many a process takes one after the other in a step."""
        return stretch.batch_size // self._world_size // self.micro_batch_size(stretch)

    @property
    def examples_at_once(self) -> int:
        """Examples that all processes together compute at one time."""
        return self._held_out_at_once * self._world_size

    @property
    def _held_out_at_once(self) -> int:
        longest = max(self.plan.stretches, key=lambda stretch: stretch.drawing.max_length)
        return self.micro_batch_size(longest)

    def training(self, start_step: int, *, pin_memory: bool) -> Iterator[list[Batch]]:
        """The micro-batches of each step that is still to do, one step at a time."""
        loader = training_loader(
            self._drawn,
            _Asked(self, start_step),
            workers=self._settings.loader_workers,
            pin_memory=pin_memory,
        )
        micro_batches = iter(loader)
        for step in range(start_step, self.plan.steps):
            yield list(itertools.islice(micro_batches, self.micro_batches(self.plan.stretch(step))))

    def of_step(self, step: int) -> list[Batch]:
        """The micro-batches of one step, counted from 0, drawn again."""
        stretch = self.plan.stretch(step)
        asked = itertools.islice(self.order(stretch, step), self.micro_batches(stretch))
        return [self._drawn.__getitems__((stretch.drawing, keys)) for keys in asked]

    def keys_of_step(self, step: int) -> list[Key]:
        """(epoch, index) of every example of one step, over all processes."""
        return self.order(self.plan.stretch(step), step).global_keys(step)

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
                batch_size=self._held_out_at_once,
                rank=rank,
                world_size=self._world_size,
                lengths=self._validation.lengths,
            )
            for rank in (self._rank, 0)  # no process has more than the first
        )
        for number in range(len(first)):
            counts = number < len(keys)
            batch = self._validation.__getitems__(keys[number] if counts else [(0, 0)])
            yield self._held_out_layout(batch), counts

    def order(self, stretch: Stretch, start_step: int) -> GlobalBatches:
        """The keys of this process's micro-batches from a step of a stretch on."""
        return GlobalBatches(
            len(self._train),
            global_batch_size=stretch.batch_size,
            micro_batch_size=self.micro_batch_size(stretch),
            seed=self._settings.seed,
            start_step=start_step,
            num_steps=stretch.last_step - start_step,
            rank=self._rank,
            world_size=self._world_size,
            lengths=self._drawn.examples(stretch.drawing).lengths if self._settings.length_groups else None,
            length_groups=self._settings.length_groups,
            first_step=stretch.first_step,
            first_row=stretch.first_row,
            last_step=None if stretch.last_step == self.plan.steps else stretch.last_step,
            mixture=self._mixtures[stretch.drawing.weights],
        )
