from typing import Any

import numpy as np
from numpy.typing import NDArray

from nystromformer.data import stateless_random as random
from nystromformer.data.pairs import Pairs, SpecialIds, _truncate, build_pairs

SPECIAL = SpecialIds(cls=1, sep=2, pad=0)


def keys(count: int, epoch: int = 0) -> NDArray[np.uint64]:
    return random.row_keys(0, np.full(count, epoch), np.arange(count))


def build(chunks: list[list[int]], row_keys: NDArray[np.uint64], max_length: int = 64) -> Pairs:
    """Pairs of chunks given as their sentences' lengths; the tokens of each count up from 100."""
    tokens: list[NDArray[Any]] = [np.arange(100, 100 + sum(lengths), dtype=np.uint16) for lengths in chunks]
    return build_pairs(
        tokens,
        [np.asarray(lengths, np.int32) for lengths in chunks],
        row_keys,
        max_length=max_length,
        special=SPECIAL,
    )


def sides(row: NDArray[np.int64]) -> tuple[list[int], list[int]]:
    first_sep, second_sep = np.flatnonzero(row == SPECIAL.sep)
    assert row[0] == SPECIAL.cls
    assert np.all(row[second_sep + 1 :] == SPECIAL.pad)
    return row[1:first_sep].tolist(), row[first_sep + 1 : second_sep].tolist()


def test_a_pair_is_the_chunk_cut_at_a_sentence_and_perhaps_swapped():
    chunk = [3, 1, 4, 2]
    pairs = build([chunk] * 2000, keys(2000))
    cuts = []
    for row, label in zip(pairs.input_ids, pairs.sentence_order_label, strict=True):
        first, second = sides(row)
        a, b = (second, first) if label else (first, second)
        assert a + b == list(range(100, 110))
        cuts.append(len(a))
    values, counts = np.unique(cuts, return_counts=True)
    assert values.tolist() == [3, 4, 8]
    assert np.all(np.abs(counts - 2000 / 3) < 4 * np.sqrt(2000 * 2 / 9))


def test_labels_are_balanced():
    labels = build([[2, 2]] * 20_000, keys(20_000)).sentence_order_label
    assert abs(labels.mean() - 0.5) < 0.01


def test_types_and_mask_follow_the_layout():
    pairs = build([[2, 3], [9, 9]], keys(2))
    for row in range(2):
        first, second = sides(pairs.input_ids[row])
        length = len(first) + len(second) + 3
        assert pairs.attention_mask[row].tolist() == [1] * length + [0] * (21 - length)
        types = [0] * (len(first) + 2) + [1] * (len(second) + 1) + [0] * (21 - length)
        assert pairs.token_type_ids[row].tolist() == types


def test_too_long_pairs_lose_tokens_of_the_longer_side_at_both_ends():
    pairs = build([[20, 30]] * 1000, keys(1000), max_length=23)
    fronts = []
    for row, label in zip(pairs.input_ids, pairs.sentence_order_label, strict=True):
        first, second = sides(row)
        a, b = (second, first) if label else (first, second)
        assert (len(a), len(b)) == (10, 10)
        assert a == list(range(a[0], a[0] + 10))
        assert b == list(range(b[0], b[0] + 10))
        fronts.append((a[0] - 100, b[0] - 120))
    # Binomial(10, 1/2) and Binomial(20, 1/2)
    a_front, b_front = np.array(fronts).T
    assert abs(a_front.mean() - 5) < 4 * np.sqrt(2.5 / 1000)
    assert abs(b_front.mean() - 10) < 4 * np.sqrt(5 / 1000)
    assert abs(b_front.var() - 5) < 1


def test_truncation_is_alberts_loop():
    def loop(a: int, b: int, target: int) -> tuple[int, int]:
        while a + b > target:
            if a > b:
                a -= 1
            else:
                b -= 1
        return a, b

    a, b = (grid.ravel() for grid in np.meshgrid(np.arange(1, 40), np.arange(1, 40)))
    for target in (5, 12, 21, 60):
        new_a, new_b, a_skip, b_skip = _truncate(a, b, keys(len(a)), target)
        expected = [loop(x, y, target) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
        assert list(zip(new_a.tolist(), new_b.tolist(), strict=True)) == expected
        assert np.all((a_skip >= 0) & (a_skip <= a - new_a) & (b_skip >= 0) & (b_skip <= b - new_b))


def test_a_row_is_the_same_alone_and_in_any_batch():
    chunks = [[5, 9, 3], [2, 2], [40, 60], [1, 1, 1, 1]]
    together = build(chunks, keys(4))
    for number, chunk in enumerate(chunks):
        alone = build([chunk], keys(4)[number : number + 1])
        length = alone.input_ids.shape[1]
        for one, many in zip(alone, together, strict=True):
            np.testing.assert_array_equal(
                one[0], many[number][..., :length] if many.ndim > 1 else many[number]
            )
        assert not together.attention_mask[number, length:].any()
