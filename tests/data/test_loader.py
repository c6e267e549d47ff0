import numpy as np
import pytest
import torch

from nystromformer.data.examples import Key, PretrainingExamples
from nystromformer.data.loader import GlobalBatches, shuffled, training_loader, validation_batches
from nystromformer.data.storage import PreparedData
from nystromformer.errors import UserError


def batches(num_examples: int = 100, **changes: int) -> GlobalBatches:
    values = {"global_batch_size": 24, "micro_batch_size": 3, "seed": 0, "num_steps": 20}
    return GlobalBatches(num_examples, **{**values, **changes})


def global_batches(world_size: int, micro_batch_size: int = 3, steps: int = 20) -> list[list[Key]]:
    """What all processes take together, put back in order."""
    whole = []
    ranks = [
        list(batches(rank=rank, world_size=world_size, micro_batch_size=micro_batch_size, num_steps=steps))
        for rank in range(world_size)
    ]
    per_step = 24 // world_size // micro_batch_size
    for step in range(steps):
        rows: list[Key | None] = [None] * 24
        for rank in range(world_size):
            micro = ranks[rank][step * per_step : (step + 1) * per_step]
            rows[rank::world_size] = [key for keys in micro for key in keys]
        whole.append([row for row in rows if row is not None])
    return whole


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


def test_batches_are_the_endless_sequence_of_epochs():
    keys = [key for batch in global_batches(1) for key in batch]
    assert len(keys) == 480
    for epoch in range(4):
        part = keys[epoch * 100 : (epoch + 1) * 100]
        assert {key[0] for key in part} == {epoch}
        assert sorted(key[1] for key in part) == list(range(100))


@pytest.mark.parametrize("world_size", [2, 4])
def test_global_batches_are_the_same_for_any_number_of_processes(world_size: int):
    assert global_batches(world_size) == global_batches(1)
    assert global_batches(world_size, micro_batch_size=6) == global_batches(1)


def test_resuming_continues():
    whole = list(batches(rank=1, world_size=2))
    rest = batches(rank=1, world_size=2, start_step=7, num_steps=13)
    assert rest.micro_batches_per_step == 4
    assert list(rest) == whole[7 * 4 :]
    assert len(rest) == 13 * 4


def test_a_global_batch_may_be_larger_than_the_corpus():
    keys = next(iter(batches(5, micro_batch_size=24)))
    assert len(set(keys)) == 24


def test_impossible_sizes_are_refused():
    with pytest.raises(UserError, match="multiple of 5"):
        batches(world_size=5)
    with pytest.raises(UserError, match="divisor of 24"):
        batches(micro_batch_size=5)
    with pytest.raises(UserError, match="no training examples"):
        batches(0)


def test_workers_change_nothing(prepared: PreparedData):
    examples = PretrainingExamples(prepared, "train", max_length=64)
    sampler = batches(len(examples), num_steps=3)
    alone = list(training_loader(examples, sampler, workers=0))
    loader = training_loader(examples, sampler, workers=2)
    for _ in range(2):  # the workers persist: iterating again gives the same again
        together = list(loader)
        assert len(together) == len(alone) == len(loader) == 24
        for a, b in zip(alone, together, strict=True):
            assert a.keys() == b.keys()
            assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_validation_is_always_the_same_and_evenly_spread(prepared: PreparedData, world_size: int):
    examples = PretrainingExamples(prepared, "train", max_length=64)
    parts = [
        validation_batches(examples, count=50, batch_size=7, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    keys = sorted(key for part in parts for batch in part for key in batch)
    assert keys == [(0, number * len(examples) // 50) for number in range(50)]
    assert max(len(batch) for part in parts for batch in part) == 7


def test_validation_takes_at_most_what_there_is(prepared: PreparedData):
    examples = PretrainingExamples(prepared, "validation", max_length=64)
    keys = [key for batch in validation_batches(examples, count=10**6, batch_size=16) for key in batch]
    assert keys == [(0, index) for index in range(len(examples))]
