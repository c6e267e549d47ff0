"""Self-pretraining on the arena: masks of the training inputs alone, pure functions of the step."""

import numpy as np
import pytest
import torch

from nystromformer.data.stateless_random import row_keys
from nystromformer.model.heads import IGNORED
from nystromformer.reproduce.lra.examples import LraTask, encoded, load_task
from nystromformer.reproduce.lra.pretraining import MaskedBatches, masked, masking, texts_of
from nystromformer.settings.scale import LraScale

SHARE = 0.15


@pytest.fixture(scope="module")
def listops():
    scale = LraScale(listops_train=40, listops_test=8, listops_shortest=10, listops_longest=80)
    return load_task("listops", scale)


def batches_of(task, steps, seed=0, batch_size=8):
    return MaskedBatches(task, SHARE, batch_size=batch_size, seed=seed, steps=steps)


def restored(batch):
    """A batch's rows with the predicted tokens put back."""
    ids = batch["input_ids"].flatten().clone()
    ids[batch["prediction_positions"]] = batch["prediction_labels"]
    return [tuple(row[row > 0].tolist()) for row in ids.view_as(batch["input_ids"])]


def test_only_training_inputs_are_masked_and_each_is_met(listops):
    batches = batches_of(listops, steps=5)
    rows = [row for step in range(5) for row in restored(*batches.of_step(step))]
    assert sorted(rows) == sorted(map(tuple, listops.train.input_ids)), "an epoch is all of them, once"


def test_fifteen_in_a_hundred_tokens_are_predicted_and_no_padding(listops):
    predicted = real = as_it_was = 0
    for step in range(20):
        (batch,) = batches_of(listops, steps=20).of_step(step)
        ids = batch["input_ids"].flatten()[batch["prediction_positions"]]
        assert (batch["prediction_labels"] > 0).all()
        assert (batch["prediction_labels"] != IGNORED).all()
        assert ((ids > 0) & (ids <= listops.mask_id)).all()
        predicted, real = predicted + len(ids), real + int(batch["attention_mask"].sum())
        as_it_was += int((ids == batch["prediction_labels"]).sum())
    assert abs(predicted / real - SHARE) < 0.01
    assert 0.05 < as_it_was / predicted < 0.2


def test_masks_are_a_function_of_seed_and_step_and_new_in_each_epoch(listops):
    first, again = batches_of(listops, 10).of_step(3)[0], batches_of(listops, 10).of_step(3)[0]
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = batches_of(listops, 10, seed=1).of_step(3)[0]
    assert not torch.equal(first["input_ids"][:, :5], other["input_ids"][:, :5])
    masks: dict = {}
    for step in range(10):  # two epochs
        (batch,) = batches_of(listops, 10).of_step(step)
        for row, ids in zip(restored(batch), batch["input_ids"], strict=True):
            masks.setdefault(row, []).append(tuple(ids.tolist()))
    assert all(len(set(drawn)) == 2 for drawn in masks.values())


def test_two_documents_of_a_row_have_masks_of_their_own():
    text = list(range(1, 41))
    pairs = encoded(([[text, text]] * 4, [0, 1, 0, 1]))
    task = LraTask("retrieval", pairs, pairs, pairs, 257, 2, 40, "")
    batch = texts_of(pairs, [0, 1, 2])
    assert batch["input_ids"].shape == (3, 2, 40)
    found = masked(batch, masking(task, 0.5), row_keys(0, 0, np.arange(3)))
    assert found["input_ids"].shape == (6, 40)
    assert len({tuple(row.tolist()) for row in found["input_ids"]}) == 6
    assert restored(found) == [tuple(text)] * 6
