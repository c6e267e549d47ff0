"""Prediction slots say what the labels say, in shapes that repeat."""

import itertools

import numpy as np
import pytest
import torch

from nystromformer.data.examples import PretrainingExamples
from nystromformer.data.layout import Layout, best_widths
from nystromformer.data.pairs import IGNORED
from nystromformer.data.storage import PreparedData


def labels_of(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The labels (B, W) back from the slots; fails where two slots are one place."""
    labels = torch.full_like(batch["input_ids"], IGNORED).flatten()
    used = batch["prediction_labels"] != IGNORED
    places = batch["prediction_positions"][used]
    assert len(set(places.tolist())) == len(places)
    labels[places] = batch["prediction_labels"][used]
    return labels.view_as(batch["input_ids"])


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("masking", ["token", "whole_word", "ngram"])
def test_slots_say_what_the_labels_say(prepared: PreparedData, masking: str, static: bool):
    examples = PretrainingExamples(prepared, "train", max_length=64, masking=masking)
    layout = examples.layout(static=static)
    shapes = set()
    for start in range(0, 200, 8):
        batch = examples.__getitems__([(0, index) for index in range(start, start + 8)])
        laid_out = layout(batch)
        length = batch["labels"].shape[1]
        assert torch.equal(labels_of(laid_out)[:, :length], batch["labels"])
        assert torch.equal(laid_out["input_ids"][:, :length], batch["input_ids"])
        assert torch.equal(laid_out["token_type_ids"][:, :length], batch["token_type_ids"])
        assert (labels_of(laid_out)[:, length:] == IGNORED).all()
        assert not laid_out["attention_mask"][:, length:].any()
        shapes.add((laid_out["input_ids"].shape, laid_out["prediction_labels"].shape))
        assert laid_out["prediction_positions"].shape == laid_out["prediction_labels"].shape
        assert ("labels" in laid_out, "labels" in batch) == (False, True)
    if static:
        assert len(shapes) <= len(layout.widths)
        assert {shape[1] for shape, _ in shapes} <= set(layout.widths)
    else:
        assert all(layout(batch)["prediction_labels"] != IGNORED)


@pytest.mark.parametrize("masking", ["token", "whole_word", "ngram"])
@pytest.mark.parametrize("length", [8, 16, 64])
def test_no_single_row_predicts_more_than_its_slots(prepared: PreparedData, masking: str, length: int):
    examples = PretrainingExamples(prepared, "train", max_length=length, masking=masking)
    layout = examples.layout(static=True)
    assert layout.widths[-1] == length
    for index in range(200):
        batch = examples.__getitems__([(0, index)])
        laid_out = layout(batch)
        predicted = int((batch["labels"] != IGNORED).sum())
        assert 1 <= predicted <= len(laid_out["prediction_labels"])


def test_a_batch_without_anything_to_predict():
    ids = torch.tensor([[1, 2, 3]])
    batch = {"input_ids": ids, "labels": torch.full_like(ids, IGNORED)}
    assert Layout(0)(batch)["prediction_positions"].tolist() == []
    static = Layout(9, (4,), (2,))(batch)
    assert static["input_ids"].tolist() == [[1, 2, 3, 9]]
    assert static["prediction_labels"].tolist() == [IGNORED, IGNORED]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_widths_are_the_best_there_are(count: int):
    lengths = np.random.default_rng(count).integers(1, 45, 60)

    def padding(widths: tuple[int, ...]) -> int:
        return int((np.asarray(widths)[np.searchsorted(widths, lengths)] - lengths).sum())

    found = best_widths(lengths, 45, count)
    assert found[-1] == 45
    assert len(found) <= count
    candidates = [8, 16, 24, 32, 40]
    every = [(*some, 45) for some in itertools.combinations(candidates, count - 1)]
    assert padding(found) == min(map(padding, every))


def test_widths_of_few_lengths():
    assert best_widths(np.array([5, 5, 5]), 512, 8)[-1] == 512
    assert 8 in best_widths(np.array([5, 5, 5]), 512, 8)
    assert best_widths(np.array([], np.int64), 64)[-1] == 64
    assert best_widths(np.array([3]), 4) == (4,)
