"""Segments, their means, and the other ways to choose landmarks."""

import numpy as np
import pytest
import torch

from nystromformer import nystrom_attention
from nystromformer.attention.landmarks import Segments, kmeans_centres, segment_means, uniform_samples


def padding(rows: int, length: int) -> torch.Tensor:
    mask = torch.rand(rows, length) < torch.rand(rows, 1)
    mask[:, 0], mask[0] = False, False
    return mask


@pytest.mark.parametrize(("length", "m"), [(1, 1), (7, 3), (64, 64), (65, 64), (128, 64), (101, 7)])
def test_means_without_padding(length, m):
    x = torch.randn(2, 3, length, 4, dtype=torch.float64)
    expected = torch.stack([part.mean(dim=2) for part in torch.tensor_split(x, m, dim=2)], dim=2)
    torch.testing.assert_close(segment_means(x, m), expected)
    none = torch.zeros(2, length, dtype=torch.bool)
    torch.testing.assert_close(segment_means(x, m, Segments.of(none, m)), expected)


@pytest.mark.parametrize(("length", "m"), [(9, 4), (50, 8), (97, 16)])
def test_means_and_gradients_with_padding(length, m):
    torch.manual_seed(length)
    x = torch.randn(5, 2, length, 3, dtype=torch.float64, requires_grad=True)
    mask = padding(5, length)
    segments = Segments.of(mask, m)
    means = segment_means(x, m, segments)
    for row in range(5):
        real = np.flatnonzero(~mask[row].numpy())
        for landmark, part in enumerate(np.array_split(real, m)):
            expected = x[row][:, part].mean(dim=1) if len(part) else torch.zeros(2, 3, dtype=x.dtype)
            torch.testing.assert_close(means[row, :, landmark], expected)
            assert segments.present_BM[row, landmark] == (len(part) > 0)
        assert segments.short_B[row] == (len(real) <= m)
    assert torch.autograd.gradcheck(lambda x: segment_means(x, m, segments), x)


def test_fewer_tokens_than_segments_are_named():
    with pytest.raises(ValueError, match="3 tokens cannot be cut into 4 segments"):
        segment_means(torch.randn(1, 1, 3, 2), 4)


def test_uniform_draws_real_tokens_once_each_in_their_order():
    torch.manual_seed(0)
    mask = padding(6, 80)
    mask[1:, :40] = False
    position = torch.arange(80.0)[None, None, :, None].expand(6, 2, 80, 1)
    drawn = uniform_samples(position, 16, Segments.of(mask, 16), seed=3)[:, 0, :, 0].long()
    for row in range(6):
        assert (drawn[row].diff() > 0).all()
        assert not mask[row, drawn[row]].any()
    again = uniform_samples(position, 16, Segments.of(mask, 16), seed=3)[:, 0, :, 0].long()
    other = uniform_samples(position, 16, Segments.of(mask, 16), seed=4)[:, 0, :, 0].long()
    assert (drawn == again).all()
    assert (drawn != other).any()


def test_uniform_draws_every_token_equally_often():
    x = torch.arange(40.0)[None, None, :, None]
    segments = Segments.of(torch.zeros(1, 40, dtype=torch.bool), 10)
    counts = torch.zeros(40)
    for seed in range(2000):
        counts[uniform_samples(x, 10, segments, seed).flatten().long()] += 1
    assert counts.min() > 400
    assert counts.max() < 600


def test_kmeans_lowers_the_spread_of_segment_means():
    torch.manual_seed(1)
    x = torch.randn(2, 2, 120, 4)
    segments = Segments.of(torch.zeros(2, 120, dtype=torch.bool), 8)

    def spread(centres):
        return torch.cdist(x, centres).amin(dim=-1).square().mean()

    assert spread(kmeans_centres(x, 8, segments)) < 0.8 * spread(segment_means(x, 8, segments))


@pytest.mark.parametrize("landmarks", ["uniform", "kmeans"])
def test_other_landmarks_do_not_see_padding_or_batch_mates(landmarks):
    torch.manual_seed(2)
    rows = torch.randn(3, 2, 2, 60, 8, dtype=torch.float64)
    alone = nystrom_attention(*rows[:, :1], num_landmarks=8, landmarks=landmarks)
    padded = torch.nn.functional.pad(rows, (0, 0, 11, 30), value=7.0)
    mask = torch.ones(2, 101, dtype=torch.bool)
    mask[0, 11:71] = False
    mask[1, 11:16] = False  # five tokens: exact
    out = nystrom_attention(*padded, num_landmarks=8, landmarks=landmarks, key_padding_mask=mask)
    torch.testing.assert_close(out[:1, :, 11:71], alone, rtol=1e-9, atol=1e-9)
    query, key, value = (x[1:, :, :5] for x in rows)
    exact = torch.softmax(query @ key.mT / 8**0.5, dim=-1) @ value
    torch.testing.assert_close(out[1:, :, 11:16], exact)


@pytest.mark.parametrize("landmarks", ["uniform", "kmeans"])
def test_gradients_of_other_landmarks(landmarks):
    torch.manual_seed(3)
    leaves = [torch.randn(2, 1, 12, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    mask = torch.arange(12) >= torch.tensor([[12], [9]])
    assert torch.autograd.gradcheck(
        lambda *x: nystrom_attention(*x, num_landmarks=4, landmarks=landmarks, key_padding_mask=mask),
        leaves,
        fast_mode=True,
    )
