import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nystromformer.data.segmentation import Chunks, Segmentation

Sentences = list[list[int]]


def lengths_of(chunks: Chunks) -> list[list[int]]:
    ends = np.cumsum(chunks.chunk_sentences)[:-1]
    return [part.tolist() for part in np.split(chunks.sentence_lengths, ends)]


def document(*lengths: int) -> Sentences:
    numbers = iter(range(sum(lengths)))
    return [[next(numbers) for _ in range(length)] for length in lengths]


FULL = Segmentation(max_length=23, short_sequence_probability=0.0, seed=0)  # 20 tokens a chunk


def test_sentences_join_while_they_fit():
    chunks, _ = FULL.chunk(document(5, 5, 10, 5, 5, 11, 3), 1)
    assert lengths_of(chunks) == [[5, 5, 10], [5, 5], [11, 3]]


def test_a_second_sentence_joins_even_if_it_does_not_fit():
    chunks, _ = FULL.chunk(document(15, 15, 2, 2), 1)
    assert lengths_of(chunks) == [[15, 15], [2, 2]]


def test_a_last_sentence_alone_is_dropped_and_counted():
    chunks, counts = FULL.chunk(document(10, 10, 7), 1)
    assert lengths_of(chunks) == [[10, 10]]
    assert (counts.dropped_sentences, counts.dropped_tokens, counts.dropped_documents) == (1, 7, 0)
    chunks, counts = FULL.chunk(document(7), 1)
    assert len(chunks) == 0
    assert (counts.dropped_sentences, counts.dropped_documents, counts.documents) == (1, 1, 0)


def test_a_sentence_beyond_a_chunk_is_cut_into_pieces():
    chunks, counts = FULL.chunk(document(25), 1)
    assert lengths_of(chunks) == [[8, 8]]  # the third piece, of 9, is left alone
    assert counts.cut_sentences == 1
    assert counts.tokens + counts.dropped_tokens == 25


def test_short_chunks_have_their_share_and_their_range():
    segmentation = Segmentation(max_length=103, short_sequence_probability=0.1, seed=0)
    targets = np.concatenate([segmentation._targets(number, 100) for number in range(300)])
    short = targets[targets < 100]
    share = 0.1 * 98 / 99  # a short one can draw the full length too
    assert abs(len(short) / len(targets) - share) < 3 * np.sqrt(share * (1 - share) / len(targets))
    assert short.min() == 2
    assert abs(short.mean() - 50.5) < 3 * 28.3 / np.sqrt(len(short))


def test_targets_follow_the_seed_and_the_document():
    a = Segmentation(64, 0.5, seed=0)
    assert a._targets(7, 50) == a._targets(7, 50)
    assert a._targets(7, 50) != a._targets(8, 50)
    assert a._targets(7, 50) != Segmentation(64, 0.5, seed=1)._targets(7, 50)
    assert a._targets(2**64 - 1, 50)[:10] == a._targets(2**64 - 1, 10)[:10]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 70), max_size=40),
    st.integers(8, 40),
    st.floats(0, 1),
    st.integers(0, 2**64 - 1),
)
def test_chunks_and_the_report_account_for_every_token(
    lengths: list[int], max_length: int, short: float, document_hash: int
):
    sentences = document(*lengths)
    chunks, counts = Segmentation(max_length, short, seed=3).chunk(sentences, document_hash)
    # Stored tokens are the document's beginning, in order; what is left is the dropped sentence.
    assert chunks.tokens.tolist() == list(range(counts.tokens))
    assert counts.tokens + counts.dropped_tokens == sum(lengths)
    assert counts.dropped_sentences <= 1
    assert sum(map(sum, lengths_of(chunks))) == counts.tokens
    for chunk in lengths_of(chunks) if len(chunks) else []:
        assert len(chunk) >= 2
        assert max(chunk) <= max_length - 3
        assert min(chunk) >= 1
        assert sum(chunk[:-1]) <= max_length - 3  # only the second sentence may overshoot
