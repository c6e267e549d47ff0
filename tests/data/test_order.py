"""The order of the batches: each example once an epoch, any number of processes, little padding."""

from itertools import chain

import numpy as np
import pytest
from numpy.typing import NDArray

from nystromformer.data.examples import Key
from nystromformer.data.order import WINDOW, GlobalBatches, largest_divisor, shuffled, validation_batches
from nystromformer.errors import UserError

EXAMPLES, ROWS = 2000, 24
LENGTHS = np.clip(np.random.default_rng(0).normal(400, 150, EXAMPLES).astype(np.int64), 20, 512)


def lengths(indices: NDArray[np.int64]) -> NDArray[np.int64]:
    return LENGTHS[indices]


def batches(num_examples: int = EXAMPLES, **changes: object) -> GlobalBatches:
    values = {"global_batch_size": ROWS, "micro_batch_size": 3, "seed": 0, "num_steps": 20}
    return GlobalBatches(num_examples, **{**values, **changes})  # type: ignore[arg-type]


def steps_of(sampler: GlobalBatches) -> list[list[list[Key]]]:
    """The micro-batches of each step."""
    micro = list(sampler)
    size = sampler.micro_batches_per_step
    return [micro[start : start + size] for start in range(0, len(micro), size)]


def padding(micro_batches: list[list[Key]]) -> float:
    rows = [LENGTHS[[index for _, index in keys]] for keys in micro_batches]
    return 1 - sum(row.sum() for row in rows) / sum(row.max() * len(row) for row in rows)


@pytest.mark.parametrize("num_examples", [1, 2, 3, 10, 64, 65, 1000, 4097])
def test_each_epoch_is_a_permutation(num_examples: int):
    everything = np.arange(num_examples)
    orders = [
        shuffled(everything, np.full(num_examples, epoch), num_examples=num_examples, seed=seed)
        for epoch, seed in ((0, 0), (1, 0), (0, 1))
    ]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), everything)
    if num_examples >= 64:
        assert all(np.mean(a == b) < 0.1 for a, b in ((orders[0], orders[1]), (orders[0], orders[2])))
        assert abs(np.corrcoef(everything, orders[0])[0, 1]) < 4 / np.sqrt(num_examples)


def test_every_place_is_as_likely():
    epochs = np.repeat(np.arange(20_000), 5)
    positions = np.tile(np.arange(5), 20_000)
    order = shuffled(positions, epochs, num_examples=5, seed=0).reshape(-1, 5)
    for position in range(5):
        counts = np.bincount(order[:, position], minlength=5)
        assert np.all(np.abs(counts - 4000) < 5 * np.sqrt(3200))


GROUPED = {"lengths": lengths, "length_groups": 4}


@pytest.mark.parametrize("grouping", [{}, GROUPED])
def test_batches_are_the_endless_sequence_of_epochs(grouping: dict):
    """Window for window, whatever the order within one."""
    window = WINDOW if grouping else 1
    sampler = batches(num_steps=10 * WINDOW, **grouping)
    keys = [key for micro in sampler for key in micro]
    assert len(keys) == 10 * WINDOW * ROWS
    places = np.arange(len(keys))
    epochs, positions = np.divmod(places, EXAMPLES)
    indices = shuffled(positions, epochs, num_examples=EXAMPLES, seed=0)
    plain = list(zip(epochs.tolist(), indices.tolist(), strict=True))
    for start in range(0, len(keys), window * ROWS):
        there = slice(start, start + window * ROWS)
        assert sorted(keys[there]) == sorted(plain[there])


@pytest.mark.parametrize("grouping", [{}, GROUPED])
@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("micro_batch_size", [1, 3, 6])
def test_global_batches_are_the_same_for_any_number_of_processes(grouping, world_size, micro_batch_size):
    alone = [list(chain(*step)) for step in steps_of(batches(micro_batch_size=24, **grouping))]
    shared = [
        steps_of(batches(rank=rank, world_size=world_size, micro_batch_size=micro_batch_size, **grouping))
        for rank in range(world_size)
    ]
    for step, expected in enumerate(alone):
        # Micro-batch k of rank 0, of rank 1, …, then micro-batch k + 1: the global batch in its order.
        dealt = [
            key for micro in zip(*(of_rank[step] for of_rank in shared), strict=True) for key in chain(*micro)
        ]
        assert dealt == expected == batches(**grouping).global_keys(step)


@pytest.mark.parametrize("grouping", [{}, GROUPED])
@pytest.mark.parametrize("start", [0, 7, 16, 19])
def test_resuming_continues(grouping: dict, start: int):
    whole = list(batches(rank=1, world_size=2, **grouping))
    rest = batches(rank=1, world_size=2, start_step=start, num_steps=20 - start, **grouping)
    assert rest.micro_batches_per_step == 4
    assert list(rest) == whole[start * 4 :]
    assert len(rest) == (20 - start) * 4


def test_groups_hold_rows_of_like_length_and_batches_a_mix_of_groups():
    group = ROWS // 4
    micro = list(batches(micro_batch_size=group, num_steps=64, **GROUPED))
    assert padding(micro) < 0.03 < 0.1 < padding(list(batches(micro_batch_size=group, num_steps=64)))
    # Groups of one batch lie apart as any groups do: four of a kind would give a spread near that of rows.
    of_groups = np.array([LENGTHS[[index for _, index in keys]].mean() for keys in micro])
    of_batches = of_groups.reshape(-1, 4).mean(axis=1)
    assert of_batches.std() < 0.65 * of_groups.std()


def test_a_window_is_no_longer_than_an_epoch():
    """Otherwise the same example, of the same length in every epoch, would come twice in a batch."""
    for step in range(30):
        keys = batches(60, **GROUPED, micro_batch_size=6).global_keys(step)
        assert len({index for _, index in keys}) >= ROWS - 12  # an epoch may end in the batch


def test_a_global_batch_may_be_larger_than_the_corpus():
    for grouping in ({}, GROUPED):
        keys = next(iter(batches(5, micro_batch_size=24, **grouping)))
        assert len(set(keys)) == 24


def test_groups_that_do_not_divide_the_batch():
    assert [largest_divisor(24, groups) for groups in (1, 4, 5, 7, 24, 100)] == [1, 4, 4, 6, 24, 24]
    assert largest_divisor(7, 4) == largest_divisor(7, 0) == 1
    sampler = batches(lengths=lengths, length_groups=5, micro_batch_size=6, num_steps=32)
    assert padding(list(sampler)) < 0.03


def test_impossible_sizes_are_refused():
    with pytest.raises(UserError, match="multiple of 5"):
        batches(world_size=5)
    with pytest.raises(UserError, match="divisor of 24"):
        batches(micro_batch_size=5)
    with pytest.raises(UserError, match="no training examples"):
        batches(0)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_validation_is_always_the_same_and_evenly_spread(world_size: int):
    parts = [
        validation_batches(
            EXAMPLES, count=50, batch_size=7, rank=rank, world_size=world_size, lengths=lengths
        )
        for rank in range(world_size)
    ]
    keys = sorted(key for part in parts for batch in part for key in batch)
    assert keys == [(0, number * EXAMPLES // 50) for number in range(50)]
    assert max(len(batch) for part in parts for batch in part) == 7
    assert padding(parts[0]) < padding([[(0, number * 40) for number in range(7)]])


def test_validation_takes_at_most_what_there_is():
    keys = [key for batch in validation_batches(30, count=10**6, batch_size=16) for key in batch]
    assert keys == [(0, index) for index in range(30)]
