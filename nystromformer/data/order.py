"""The order of the batches: which examples each step takes, and which rows go together.

Pure functions of (seed, step) and of the examples' lengths, computed point by point, without tables
over the corpus: the same for any number of workers and processes, and after any resume.

    epochs          ┌ epoch 0, shuffled ┬ epoch 1, shuffled ┬ …      an endless sequence of places;
                    of a mixture, each source as often as it weighs
    windows         ├ WINDOW global batches ┼ …                      each sorted by length …
    groups          ├──┬──┬──┬──┬──┬──┬──┬──┤                        … and cut into rows of like length
    global batches  a few groups each, drawn at random; its rows sorted, the longest first
    micro-batches   consecutive rows: micro-batch k of every process is of like length
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from nystromformer.data import stateless_random as random
from nystromformer.data.examples import Key
from nystromformer.data.stateless_random import Stream
from nystromformer.data.storage import PreparedData
from nystromformer.errors import UserError

WINDOW = 16
"""Global batches whose rows are sorted by length together."""

IntArray = NDArray[np.int64]

_FEISTEL_ROUNDS = 8  # with 6, the orders of a handful of examples are visibly not equally likely


def shuffled(positions: IntArray, epochs: IntArray, *, num_examples: int, seed: int) -> IntArray:
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


class Mixture:
    """Epochs over the sources of a corpus, which lie one after the other, each as often as it weighs.

    A source of weight 0.5 shows one half of its examples in one epoch and the other in the next; each has a
    random order of its own, in which none is skipped.

    Args:
        sizes: examples of each source.
        weights: of each; all 0 are impossible.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float]) -> None:
        self._sizes = sizes
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        shown = [round(size * weight) for size, weight in zip(sizes, weights, strict=True)]
        self._places = np.concatenate([[0], np.cumsum(shown)])

    def __len__(self) -> int:
        """Places of one epoch."""
        return int(self._places[-1])

    def keys(self, epochs: IntArray, positions: IntArray, seed: int) -> IntArray:
        """(pass over its source, index) of the example at each epoch's position, (N,), (N,) → (N, 2)."""
        drawn = shuffled(positions, epochs, num_examples=len(self), seed=seed)
        sources = np.searchsorted(self._places, drawn, side="right") - 1
        keys = np.empty((len(drawn), 2), np.int64)
        for source in np.unique(sources).tolist():
            here = sources == source
            first, end = self._places[source : source + 2]
            place = epochs[here] * (end - first) + drawn[here] - first
            passes, own = np.divmod(place, self._sizes[source])
            index = shuffled(own, passes, num_examples=self._sizes[source], seed=seed)
            keys[here] = np.stack([passes, self._starts[source] + index], axis=1)
        return keys


def mixture_of(prepared: PreparedData, weights: Sequence[float]) -> Mixture | None:
    """The training split with its sources weighed; None without weights.

    Raises:
        UserError: there are not as many sources, or the version that prepared them did not count theirs.
    """
    if not weights:
        return None
    sizes = prepared.manifest.get("training_chunks")
    if sizes is None:
        raise UserError(
            f"{prepared.folder} does not say which examples are of which source, as an earlier version left "
            "it: prepare it anew (delete the folder), or leave the weights of training.phases out"
        )
    if len(weights) != len(sizes):
        raise UserError(
            f"training.phases: {len(weights)} weights, and the corpus has {len(sizes)} sources: write one "
            "weight for each"
        )
    mixture = Mixture(sizes, weights)
    if not len(mixture):
        raise UserError(f"training.phases: the weights {list(weights)} leave no example: write higher ones")
    return mixture


class GlobalBatches:
    """A batch sampler whose global batches are the same for any number of processes.

    Window w of K global batches of G rows takes places [w·K·G, (w+1)·K·G) of the endless sequence of
    epochs, each epoch in its own random order; so no example is skipped. Without `lengths` K is 1 and
    the rows stay in that order. With them K is WINDOW, or as many batches as an epoch fills, and each
    global batch is `length_groups` groups of rows of like length, which keeps the padding small and
    the batches a random mix.

    Process `rank` of `world_size` takes its share of each global batch in micro-batches. Iterating
    yields lists of keys (epoch, index): the micro-batches of step `start_step`, then those of the
    next, for `num_steps` steps. To resume after step t, pass start_step=t.

    The batches of a run can be several of these, one after the other: each knows where it begins and ends.

    Args:
        first_step: the run's first step that is of these.
        first_row: rows that were drawn before it.
        last_step: the first one that is not of these any more: the window before it ends there.
        mixture: what an epoch is where not all examples once.
        lengths: tokens of the examples with these indices, (n,) → (n,).
        length_groups: how many groups make a global batch; where it is no divisor of the global batch
            size, the next smaller divisor.
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
        lengths: Callable[[IntArray], IntArray] | None = None,
        length_groups: int = 1,
        first_step: int = 0,
        first_row: int = 0,
        last_step: int | None = None,
        mixture: Mixture | None = None,
    ) -> None:
        num_examples = num_examples if mixture is None else len(mixture)
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
        self._mixture = mixture
        self._first_step, self._first_row, self._last_step = first_step, first_row, last_step
        self._global_batch_size = global_batch_size
        self._micro_batch_size = micro_batch_size
        self._seed = seed
        self._steps = range(start_step, start_step + num_steps)
        self._rank = rank
        self._world_size = world_size
        self._lengths = lengths
        self._group_size = global_batch_size // largest_divisor(global_batch_size, length_groups)
        # A window never holds an example twice, but for those at the border of two epochs: both would
        # have the same length and so come in the same batch.
        self._window = min(WINDOW, max(num_examples // global_batch_size, 1)) if lengths else 1
        self._open: tuple[int, NDArray[np.int64]] | None = None

    @property
    def micro_batches_per_step(self) -> int:
        return self._global_batch_size // self._world_size // self._micro_batch_size

    def __len__(self) -> int:
        return len(self._steps) * self.micro_batches_per_step

    def __iter__(self) -> Iterator[list[Key]]:
        for step in self._steps:
            keys = self.global_keys(step)
            size = self._micro_batch_size
            for start in range(self._rank * size, len(keys), self._world_size * size):
                yield keys[start : start + size]

    def global_keys(self, step: int) -> list[Key]:
        """All rows of global batch `step`, those of like length beside each other."""
        number, place = divmod(step - self._first_step, self._window)
        if self._open is None or self._open[0] != number:
            self._open = number, self._batches_of_window(number)
        return [(epoch, index) for epoch, index in self._open[1][place].tolist()]

    def _batches_of_window(self, number: int) -> NDArray[np.int64]:
        """The keys of a window's global batches, (K, G, 2)."""
        batches, size = self._window, self._global_batch_size
        start = self._first_row + number * batches * size
        if self._last_step is not None:
            batches = min(batches, self._last_step - self._first_step - number * batches)
        epochs, positions = np.divmod(np.arange(start, start + batches * size), self._num_examples)
        if self._mixture is not None:
            keys = self._mixture.keys(epochs, positions, self._seed)
        else:
            indices = shuffled(positions, epochs, num_examples=self._num_examples, seed=self._seed)
            keys = np.stack([epochs, indices], axis=1)
        if self._lengths is None:
            return keys.reshape(batches, size, 2)
        negative = -self._lengths(keys[:, 1])
        # Stable: rows of one length stay in the epoch's random order.
        groups = np.argsort(negative, kind="stable").reshape(-1, self._group_size)
        of_window = random.row_keys(self._seed, self._first_row + number, np.arange(len(groups)))
        draws = random.bits(of_window, Stream.LENGTH_GROUP)
        places = groups[np.argsort(draws)].reshape(batches, size)
        by_length = np.argsort(negative[places], axis=1, kind="stable")
        return keys[np.take_along_axis(places, by_length, axis=1)]


def largest_divisor(number: int, at_most: int) -> int:
    """The largest divisor of `number` that is not above `at_most`; 1 where that is less."""
    return next((divisor for divisor in range(min(at_most, number), 1, -1) if number % divisor == 0), 1)


def validation_batches(
    num_examples: int,
    *,
    count: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    lengths: Callable[[IntArray], IntArray] | None = None,
) -> list[list[Key]]:
    """Keys of at most `count` examples spread evenly over the split, always the same: epoch 0.

    Process `rank` takes every `world_size`-th, the longest first, in batches of at most `batch_size`.
    Over all processes the keys are the same for any `world_size`; one process can have a batch fewer
    than another.
    """
    count = min(count, num_examples)
    indices = np.arange(rank, count, world_size) * num_examples // max(count, 1)
    if lengths:
        indices = indices[np.argsort(-lengths(indices), kind="stable")]
    return [
        [(0, index) for index in indices[start : start + batch_size].tolist()]
        for start in range(0, len(indices), batch_size)
    ]
