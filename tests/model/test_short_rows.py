"""Rows of at most m tokens under each choice: the same alone and in a batch, and what each computes."""

from __future__ import annotations

import pytest
import torch

from nystromformer.attention.convolution import residual_convolution
from nystromformer.attention.nystrom import nystrom_attention
from nystromformer.attention.softmax import softmax_attention
from nystromformer.model import NystromformerConfig, NystromformerModel
from nystromformer.model.configuration import SHORT_ROWS
from nystromformer.model.short_rows import attention_with_short_rows

LENGTHS = (3, 16, 40, 9, 8, 23)
M, SEGMENT = 16, 4


def attend(short_rows, lengths=LENGTHS, *, rows=slice(None), width=40, iterations=6):
    torch.manual_seed(0)
    query, key, value = (torch.randn(len(LENGTHS), 2, 40, 8)[rows, :, :width] for _ in range(3))
    kernel = torch.randn(2, 1, 3, 1)
    padding = torch.arange(width) >= torch.tensor(lengths)[:, None]
    out = attention_with_short_rows(
        query, key, value, short_rows=short_rows, segment=SEGMENT, num_landmarks=M,
        padding_mask_BN=padding if padding.any() else None, pinv_iterations=iterations,
        landmarks="segment_means", kernel_H1K1=kernel,
    )  # fmt: skip
    return out, (query, key, value, kernel, padding)


@pytest.mark.parametrize("short_rows", SHORT_ROWS[1:])
def test_a_row_alone_is_what_it_is_in_a_batch(short_rows):
    out, _ = attend(short_rows)
    for row, length in enumerate(LENGTHS):
        alone, _ = attend(short_rows, (length,), rows=slice(row, row + 1), width=length)
        assert torch.allclose(out[row, :, :length], alone[0], atol=1e-5)
        assert not out[row, :, length:].any()


@pytest.mark.parametrize("short_rows", SHORT_ROWS[1:])
def test_long_rows_are_as_ever(short_rows):
    out, (query, key, value, kernel, padding) = attend(short_rows)
    ever = nystrom_attention(query, key, value, num_landmarks=M, key_padding_mask=padding, conv_weight=kernel)
    for row, length in enumerate(LENGTHS):
        assert torch.allclose(out[row], ever[row], atol=1e-5) == (length > M)


def test_what_each_choice_computes():
    row, length = 3, 9
    bare, (query, key, value, kernel, _) = attend("exact_without_convolution")
    query, key, value = (x[row : row + 1, :, :length] for x in (query, key, value))
    exact, convolution = softmax_attention(query, key, value), residual_convolution(value, kernel)
    assert torch.allclose(bare[row : row + 1, :, :length], exact, atol=1e-5)
    # With the exact inverse every token as its own landmark gives exact attention back (lemma 2).
    whole, _ = attend("landmark_per_token", iterations=None)
    assert torch.allclose(whole[row : row + 1, :, :length], exact + convolution, atol=1e-3)
    near, _ = attend("landmark_per_token")
    assert not torch.allclose(near[row : row + 1, :, :length], exact + convolution, atol=1e-3)
    segments, _ = attend("segments")
    three = nystrom_attention(query, key, value, num_landmarks=3, conv_weight=kernel)  # of 9 tokens, 4 each
    assert torch.allclose(segments[row : row + 1, :, :length], three, atol=1e-5)


@pytest.mark.parametrize("short_rows", SHORT_ROWS)
def test_model_saves_its_choice_and_learns_with_it(short_rows, tmp_path):
    shape = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = NystromformerConfig(
        **shape, intermediate_size=16, num_landmarks=8, short_rows=short_rows, short_row_segment=4
    )
    model = NystromformerModel(config).eval()
    model.save_pretrained(tmp_path)
    ids = torch.randint(5, 64, (3, 12))
    mask = (torch.arange(12) < torch.tensor([[12], [7], [3]])).long()
    again = NystromformerModel.from_pretrained(tmp_path).eval()
    assert (again.config.short_rows, again.config.short_row_segment) == (short_rows, 4)
    out = model(ids, mask).last_hidden_state
    assert torch.allclose(again(ids, mask).last_hidden_state[:, 0], out[:, 0], atol=1e-6)
    out[:, 0].sum().backward()
    gradients = [p.grad for p in model.encoder.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_unknown_choice():
    with pytest.raises(ValueError, match="short_rows='none' is unknown: use one of exact"):
        NystromformerConfig(short_rows="none")
