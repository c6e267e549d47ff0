import numpy as np

from nystromformer.data import stateless_random as random
from nystromformer.data.stateless_random import Stream


def test_the_bits_are_splitmix64s_and_never_change():
    # The first outputs of the reference implementation for seed 1234567.
    golden = 0x9E3779B97F4A7C15
    states = np.array([(1234567 + i * golden) % 2**64 for i in range(3)], np.uint64)
    assert random.mix(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_draws_are_uniform_and_streams_independent():
    keys = random.row_keys(0, np.zeros(50_000, np.int64), np.arange(50_000))
    a = random.uniform(random.bits(keys, Stream.SWAP))
    b = random.uniform(random.bits(keys, Stream.SENTENCE_SPLIT))
    for draws in (a, b):
        histogram = np.bincount((draws * 10).astype(int), minlength=10)
        assert np.all(np.abs(histogram - 5000) < 5 * np.sqrt(4500))
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.02


def test_seed_epoch_and_index_all_matter():
    keys = {
        int(random.row_keys(seed, np.array([epoch]), np.array([index]))[0])
        for seed in (-1, 0, 1)
        for epoch in range(5)
        for index in range(5)
    }
    assert len(keys) == 75


def test_positions_do_not_depend_on_how_many_are_drawn():
    keys = random.row_keys(0, np.zeros(4, np.int64), np.arange(4))
    short = random.position_bits(keys, Stream.MASK_SELECTION, 10)
    np.testing.assert_array_equal(random.position_bits(keys, Stream.MASK_SELECTION, 99)[:, :10], short)


def test_below_covers_its_range():
    words = random.mix(np.arange(10_000))
    drawn = random.below(words, 7)
    assert set(drawn.tolist()) == set(range(7))
    assert random.below(words, 1).max() == 0
