"""Loader processes change nothing in the batches and start soon."""

from collections.abc import Iterator

import pytest
import torch

from nystromformer.data.examples import PretrainingExamples
from nystromformer.data.layout import Batch
from nystromformer.data.loader import training_loader
from nystromformer.data.order import GlobalBatches
from nystromformer.data.storage import PreparedData


def sampler(examples: PretrainingExamples, **changes: int) -> GlobalBatches:
    values = {"global_batch_size": 24, "micro_batch_size": 3, "seed": 0, "num_steps": 3}
    return GlobalBatches(
        len(examples),
        **{**values, **changes},  # type: ignore[arg-type]
        lengths=examples.lengths,
        length_groups=4,
    )


def assert_same(one: Iterator[Batch] | list[Batch], other: Iterator[Batch] | list[Batch]) -> int:
    count = 0
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
        count += 1
    return count


@pytest.mark.parametrize("static", [False, True])
def test_a_worker_changes_nothing(prepared: PreparedData, static: bool):
    examples = PretrainingExamples(prepared, "train", max_length=64)
    order, layout = sampler(examples), examples.layout(static=static)
    alone = list(training_loader(examples, order, layout, workers=0))
    loader = training_loader(examples, order, layout, workers=1)
    for _ in range(2):  # the workers persist: iterating again gives the same again
        assert assert_same(alone, iter(loader)) == len(loader) == 24


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 4])
def test_workers_change_nothing(prepared: PreparedData, workers: int):
    examples = PretrainingExamples(prepared, "train", max_length=64)
    order, layout = sampler(examples, num_steps=20), examples.layout(static=True)
    alone = training_loader(examples, order, layout, workers=0)
    assert assert_same(iter(alone), iter(training_loader(examples, order, layout, workers=workers))) == 160


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_draw_the_rows_of_one(prepared: PreparedData, world_size: int):
    """Every example of a step comes with the same tokens, masks and labels, once, from one of them."""
    examples = PretrainingExamples(prepared, "train", max_length=64)
    layout = examples.layout(static=False)

    def rows(**place: int) -> list[tuple[list[int], int]]:
        found = []
        for batch in training_loader(examples, sampler(examples, num_steps=1, **place), layout, workers=0):
            for ids, mask, order in zip(
                batch["input_ids"], batch["attention_mask"], batch["sentence_order_label"], strict=True
            ):
                found.append((ids[mask.bool()].tolist(), int(order)))
        return found

    shared = [row for rank in range(world_size) for row in rows(rank=rank, world_size=world_size)]
    assert sorted(shared) == sorted(rows())


def test_an_epoch_reads_every_stored_token_once(prepared: PreparedData):
    """What was dropped before is in the manifest's counts, and nothing is lost after."""
    examples = PretrainingExamples(prepared, "train", max_length=512)  # no pair is cut
    order = sampler(examples, num_steps=len(examples) // 24 + 16)
    seen = torch.zeros(len(prepared.unigram_counts), dtype=torch.long)
    for keys in order:
        of_epoch = [key for key in keys if key[0] == 0]
        if not of_epoch:
            continue
        batch = examples.__getitems__(of_epoch)
        original = torch.where(batch["labels"] >= 0, batch["labels"], batch["input_ids"])
        types, real = batch["token_type_ids"], batch["attention_mask"].bool()
        real[:, 0] = False  # [CLS]
        real[:, :-1] &= types[:, :-1] == types[:, 1:]  # [SEP] where the first side ends, or the second
        real[:, -1] = False
        seen += torch.bincount(original[real], minlength=len(seen))
    assert seen.tolist() == prepared.unigram_counts.tolist()
    assert int(seen.sum()) == prepared.manifest["counts"]["train"]["tokens"]
