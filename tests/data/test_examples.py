import pickle

import numpy as np
import pytest
import torch

from nystromformer.data.examples import PretrainingExamples
from nystromformer.data.storage import PreparedData


def open_examples(prepared: PreparedData, **changes: object) -> PretrainingExamples:
    values: dict[str, object] = {"max_length": 64, "masking_probability": 0.15, "masking": "token", "seed": 0}
    return PretrainingExamples(prepared, "train", **{**values, **changes})  # type: ignore[arg-type]


def assert_same_row(one: dict[str, torch.Tensor], batch: dict[str, torch.Tensor], row: int) -> None:
    length = one["input_ids"].shape[-1]
    for name, value in one.items():
        torch.testing.assert_close(batch[name][row][..., :length] if value.ndim else batch[name][row], value)
    assert not batch["attention_mask"][row, length:].any()


def test_a_batch_has_its_shapes_and_types(prepared: PreparedData):
    batch = open_examples(prepared).__getitems__([(0, 0), (0, 1), (3, 1)])
    assert {name: value.dtype for name, value in batch.items()} == dict.fromkeys(
        ("input_ids", "attention_mask", "token_type_ids", "sentence_order_label", "labels"), torch.int64
    )
    length = int(batch["attention_mask"].sum(1).max())
    assert length <= 64
    for name in ("input_ids", "attention_mask", "token_type_ids", "labels"):
        assert batch[name].shape == (3, length)
    assert batch["sentence_order_label"].shape == (3,)


def test_unmasked_examples_are_the_chunk_in_one_of_two_orders(prepared: PreparedData):
    examples = open_examples(prepared, max_length=512)
    chunks = prepared.split("train")
    for index in range(0, len(examples), 50):
        row = examples[(0, index)]
        original = torch.where(row["labels"] >= 0, row["labels"], row["input_ids"])
        side = row["token_type_ids"].bool()
        first, second = original[~side][1:-1].tolist(), original[side][:-1].tolist()
        a, b = (second, first) if row["sentence_order_label"] else (first, second)
        tokens, lengths = chunks[index]
        assert a + b == tokens.tolist()
        assert len(a) in np.cumsum(lengths)[:-1]


@pytest.mark.parametrize("masking", ["token", "whole_word", "ngram"])
@pytest.mark.parametrize("max_length", [64, 16])
def test_an_example_depends_on_its_key_only(prepared: PreparedData, masking: str, max_length: int):
    examples = open_examples(prepared, masking=masking, max_length=max_length)
    keys = [(epoch, index) for epoch in (0, 5) for index in (0, 17, 300, 1)]
    batch = examples.__getitems__(keys)
    assert batch["input_ids"].shape[1] <= max_length
    again = pickle.loads(pickle.dumps(examples))
    for row, key in enumerate(keys):
        assert_same_row(again[key], batch, row)


def test_epochs_and_seeds_draw_anew(prepared: PreparedData):
    keys = [(0, index) for index in range(32)]
    labels = open_examples(prepared).__getitems__(keys)["labels"]
    other_epoch = open_examples(prepared).__getitems__([(1, index) for index in range(32)])["labels"]
    other_seed = open_examples(prepared, seed=1).__getitems__(keys)["labels"]
    for other in (other_epoch, other_seed):
        assert other.shape != labels.shape or not torch.equal(other, labels)


def test_labels_are_balanced_over_the_split(prepared: PreparedData):
    examples = open_examples(prepared)
    keys = [(epoch, index) for epoch in range(-(-20_000 // len(examples))) for index in range(len(examples))]
    batches = (examples.__getitems__(keys[i : i + 500]) for i in range(0, 20_000, 500))
    labels = torch.cat([batch["sentence_order_label"] for batch in batches]).double()
    assert abs(labels.mean() - 0.5) < 0.01
