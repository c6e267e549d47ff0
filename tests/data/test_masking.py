import numpy as np
import pytest
from numpy.typing import NDArray

from nystromformer.data import stateless_random as random
from nystromformer.data.pairs import IGNORED, Masking, _group_words

VOCABULARY, PAD, UNK, CLS, SEP, MASK = 200, 0, 1, 2, 3, 4
SPECIAL = [PAD, UNK, CLS, SEP, MASK]
FIRST_PIECE = 150  # ids from here on continue a word


def masking(unit: str, probability: float = 0.15) -> Masking:
    ids = np.arange(VOCABULARY)
    return Masking(probability, unit, MASK, np.isin(ids, SPECIAL), ids >= FIRST_PIECE, ids[5:])


def batch(rows: int, length: int, seed: int = 0) -> NDArray[np.int64]:
    """[CLS] text [SEP] text [SEP], padded to different lengths, every seventh token an [UNK]."""
    generator = np.random.default_rng(seed)
    ids = generator.integers(5, VOCABULARY, (rows, length))
    ids[:, ::7] = UNK
    ids[:, 0] = CLS
    for row, end in enumerate(generator.integers(length // 2, length, rows)):
        ids[row, [end // 3, end]] = SEP
        ids[row, end + 1 :] = PAD
    return ids


def keys(rows: int) -> NDArray[np.uint64]:
    return random.row_keys(0, np.zeros(rows, np.int64), np.arange(rows))


def words_of(row: NDArray[np.int64]) -> list[list[int]]:
    """Positions of each word: a piece joins the word before it, unless a special token is between."""
    words: list[list[int]] = []
    for position, token in enumerate(row.tolist()):
        if token in SPECIAL:
            continue
        if token >= FIRST_PIECE and words and words[-1][-1] == position - 1:
            words[-1].append(position)
        else:
            words.append([position])
    return words


def test_exactly_the_rounded_share_of_real_tokens_is_predicted():
    ids = batch(500, 120)
    _, labels = masking("token").apply(ids, keys(500))
    real = ~np.isin(ids, SPECIAL)
    np.testing.assert_array_equal((labels != IGNORED).sum(1), np.rint(0.15 * real.sum(1)))
    assert not (labels != IGNORED)[~real].any()


@pytest.mark.parametrize("unit", ["token", "whole_word", "ngram"])
def test_eighty_ten_ten(unit: str):
    ids = batch(2000, 128)
    masked, labels = masking(unit).apply(ids, keys(2000))
    chosen = labels != IGNORED
    np.testing.assert_array_equal(labels[chosen], ids[chosen])
    np.testing.assert_array_equal(masked[~chosen], ids[~chosen])
    count = chosen.sum()
    # A random token can be the original one: 1 in 195.
    kept = 0.1 + 0.1 / 195
    shares = {
        0.8: (masked[chosen] == MASK).sum() / count,
        kept: (masked[chosen] == ids[chosen]).sum() / count,
        0.9 - kept + 0.1 - 0.8: (~np.isin(masked[chosen], [MASK]) & (masked[chosen] != ids[chosen])).sum()
        / count,
    }
    for expected, share in shares.items():
        assert abs(share - expected) < 3 * np.sqrt(expected * (1 - expected) / count)
    assert not np.isin(masked[chosen], [PAD, UNK, CLS, SEP]).any()


def test_every_position_is_as_likely():
    ids = np.full((20_000, 40), 9)
    ids[:, 0], ids[:, -1] = CLS, SEP
    _, labels = masking("token").apply(ids, keys(20_000))
    share = (labels != IGNORED).mean(0)[1:-1]
    expected = 6 / 38  # round(0.15 * 38) of 38
    assert np.abs(share - expected).max() < 4.5 * np.sqrt(expected * (1 - expected) / 20_000)


@pytest.mark.parametrize("unit", ["whole_word", "ngram"])
def test_words_are_predicted_whole_and_never_too_many(unit: str):
    ids = batch(300, 100)
    _, labels = masking(unit).apply(ids, keys(300))
    chosen = labels != IGNORED
    for row in range(300):
        words = words_of(ids[row])
        whole = [chosen[row, word].all() for word in words]
        assert whole == [chosen[row, word].any() for word in words]
        wanted = round(0.15 * sum(map(len, words)))
        assert chosen[row].sum() <= wanted
        assert chosen[row].sum() >= wanted - 4


def test_whole_word_with_single_token_words_is_exact():
    ids = batch(300, 100)
    ids[ids >= FIRST_PIECE] = 9
    _, labels = masking("whole_word").apply(ids, keys(300))
    real = ~np.isin(ids, SPECIAL)
    np.testing.assert_array_equal((labels != IGNORED).sum(1), np.rint(0.15 * real.sum(1)))


def test_spans_of_one_to_three_words_by_inverse_length():
    is_real = np.ones((100, 400), bool)
    is_real[:, [0, 200, 399]] = False  # [CLS] and both [SEP]
    starts = _group_words(is_real.copy(), is_real, keys(100))
    assert starts[:, [1, 201]].all()
    ends = starts | ~is_real
    rows, columns = np.nonzero(ends[:, :195])
    lengths = np.diff(columns)[np.diff(rows) == 0]
    # From [CLS] to the first word is one more "span" of 1 in each row.
    shares = (np.bincount(lengths, minlength=4)[1:] - [100, 0, 0]) / (len(lengths) - 100)
    np.testing.assert_allclose(shares, np.array([6, 3, 2]) / 11, atol=0.02)


@pytest.mark.parametrize("unit", ["token", "whole_word", "ngram"])
def test_short_rows_predict_one_token_and_empty_ones_none(unit: str):
    ids = np.array([[CLS, 9, SEP, 150, SEP], [CLS, UNK, SEP, UNK, SEP]])
    masked, labels = masking(unit).apply(ids, keys(2))
    assert (labels != IGNORED).sum(1).tolist() == [1, 0]
    np.testing.assert_array_equal(masked[1], ids[1])


def test_where_every_word_is_too_long_the_shortest_is_predicted_in_part():
    ids = np.array([[CLS, 9, 150, 151, SEP, 9, 152, SEP]])
    _, labels = masking("whole_word").apply(ids, keys(1))
    assert labels[0].tolist() == [IGNORED] * 5 + [9, IGNORED, IGNORED]
    _, labels = masking("whole_word", probability=0.5).apply(ids[:, 1:5], keys(1))
    assert labels[0].tolist() == [9, 150, IGNORED, IGNORED]


@pytest.mark.parametrize("unit", ["token", "whole_word", "ngram"])
@pytest.mark.parametrize("length", [8, 12, 40])
def test_never_more_than_the_slots_of_a_row(unit: str, length: int):
    ids = batch(2000, length)
    ids[:, 1:-1] = np.where(ids[:, 1:-1] > 100, FIRST_PIECE + ids[:, 1:-1] % 50, ids[:, 1:-1])  # long words
    real = ~np.isin(ids, SPECIAL)
    _, labels = masking(unit).apply(ids, keys(2000))
    predicted = (labels != IGNORED).sum(1)
    most = [masking(unit).most_predicted(int(count)) for count in real.sum(1)]
    assert np.all(predicted <= most)
    assert np.all((predicted > 0) == real.any(1))


@pytest.mark.parametrize("unit", ["token", "whole_word", "ngram"])
def test_padding_and_batch_mates_change_nothing(unit: str):
    ids = batch(20, 60)
    masked, labels = masking(unit).apply(ids, keys(20))
    for row in range(20):
        length = int((ids[row] != PAD).sum())
        alone = masking(unit).apply(ids[row : row + 1, :length], keys(20)[row : row + 1])
        np.testing.assert_array_equal(alone[0][0], masked[row, :length])
        np.testing.assert_array_equal(alone[1][0], labels[row, :length])
