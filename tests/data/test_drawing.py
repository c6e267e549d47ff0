"""What a phase draws: windows of long examples, single segments, sources weighed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from nystromformer.data.examples import PretrainingExamples
from nystromformer.data.order import GlobalBatches, Mixture, mixture_of
from nystromformer.data.pairs import windows
from nystromformer.data.prepare import prepare
from nystromformer.data.stateless_random import row_keys
from nystromformer.data.storage import PreparedData
from nystromformer.errors import UserError
from nystromformer.settings.compose import compose


def unmasked(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.where(batch["labels"] >= 0, batch["labels"], batch["input_ids"])


@pytest.fixture
def examples(prepared: PreparedData) -> PretrainingExamples:
    return PretrainingExamples(prepared, "train", max_length=512)


def test_windows_are_full_and_know_their_sentences():
    draw = np.random.default_rng(0)
    chunks = []
    for number in range(600):
        lengths = draw.integers(1, 100 if number % 3 == 0 else 30, draw.integers(2, 12)).astype(np.int32)
        chunks.append((np.arange(lengths.sum()), lengths))
    found = windows(chunks, row_keys(0, 0, np.arange(600)), 40)
    begins = 0
    for (ids, lengths), (kept, of_kept) in zip(chunks, found, strict=True):
        if len(ids) <= 40:
            assert kept is ids
            continue
        borders = {0, *np.cumsum(lengths).tolist()}
        np.testing.assert_array_equal(kept, np.arange(kept[0], kept[0] + 40))
        assert len(of_kept) >= 2, "a pair needs a border"
        assert of_kept.sum() == 40
        assert set((kept[0] + np.cumsum(of_kept)[:-1]).tolist()) == {
            border for border in borders if kept[0] < border <= kept[-1]
        }
        begins += kept[0] in borders or kept[-1] + 1 == len(ids)
    assert begins > 400


def test_every_token_of_an_example_is_shown_in_some_epoch(prepared, examples: PretrainingExamples):
    chunks = [(np.arange(100), np.array([9, 11, 20, 5, 15, 25, 8, 7], np.int32))] * 300
    found = windows(chunks, row_keys(0, np.arange(300), 7), 30)
    counts = np.bincount(np.concatenate([ids for ids, _ in found]), minlength=100)
    assert counts.min() > 10
    short = examples.as_drawn(32, 0.15)
    index = max(range(len(examples)), key=lambda index: len(prepared.split("train")[index][1]))
    rows = [unmasked(short[(epoch, index)]).tolist() for epoch in range(20)]
    assert all(len(row) == 32 == short.lengths(np.array([index]))[0] for row in rows)
    assert len({tuple(row) for row in rows}) > 2


def test_drawn_at_its_own_length_an_example_is_what_it_was(examples: PretrainingExamples):
    keys = [(0, index) for index in range(16)]
    one, other = examples.__getitems__(keys), examples.as_drawn(512, 0.15).__getitems__(keys)
    assert all(torch.equal(one[name], other[name]) for name in one)
    masked = examples.as_drawn(512, 0.3).__getitems__(keys)
    assert torch.equal(unmasked(masked), unmasked(one))
    share = (masked["labels"] >= 0).sum() / (one["labels"] >= 0).sum()
    assert share == pytest.approx(2, rel=0.02)


def test_a_single_segment_is_the_tokenizer_s_own_row(prepared: PreparedData):
    examples = PretrainingExamples(prepared, "train", max_length=512, sentence_order=False)
    tokenizer, chunks = prepared.tokenizer(), prepared.split("train")
    batch = examples.__getitems__([(0, index) for index in range(20)])
    assert "sentence_order_label" not in batch
    for index, ids in enumerate(unmasked(batch)):
        tokens = tokenizer.decode(chunks[index][0])
        expected = [tokenizer.cls_token_id, *chunks[index][0].tolist(), tokenizer.sep_token_id]
        real = int(batch["attention_mask"][index].sum())
        assert ids[:real].tolist() == expected, tokens
        assert ids[real:].eq(tokenizer.pad_token_id).all()
        assert real == examples.lengths(np.array([index]))[0]
    assert not batch["token_type_ids"].any()


def test_a_long_segment_is_cut(prepared: PreparedData):
    examples = PretrainingExamples(prepared, "train", max_length=16, sentence_order=False)
    batch = examples.__getitems__([(0, index) for index in range(20)])
    assert batch["input_ids"].shape[1] == 16


@pytest.mark.parametrize("weights", [(1, 1, 1), (2, 0.5, 0), (0.3, 1, 1.7)])
def test_each_source_is_shown_as_often_as_it_weighs_and_none_of_it_skipped(weights):
    sizes = (100, 37, 60)
    mixture = Mixture(sizes, weights)
    assert len(mixture) == sum(round(size * weight) for size, weight in zip(sizes, weights, strict=True))
    epochs, positions = np.divmod(np.arange(20 * len(mixture)), len(mixture))
    keys = mixture.keys(epochs, positions, 3)
    assert len(np.unique(keys, axis=0)) == len(keys), "one drawing of an example comes once"
    start = 0
    for size, weight in zip(sizes, weights, strict=True):
        shown = np.bincount(keys[:, 1], minlength=sum(sizes))[start : start + size]
        assert shown.sum() == 20 * round(size * weight)
        assert np.ptp(shown) <= 1
        start += size
    first = [mixture.keys(epochs[:7], positions[:7], seed)[:, 1].tolist() for seed in (3, 4)]
    assert first[0] != first[1]


def test_batches_of_a_mixture_are_the_same_after_a_resume():
    words = {"global_batch_size": 8, "micro_batch_size": 8, "seed": 0, "length_groups": 4}
    mixture = Mixture((50, 20), (1, 0.5))
    order = GlobalBatches(
        70, **words, num_steps=40, mixture=mixture, lengths=lambda indices: indices % 9 + 2, first_step=5,
        start_step=5, first_row=17,
    )  # fmt: skip
    again = GlobalBatches(
        70, **words, num_steps=20, mixture=mixture, lengths=lambda indices: indices % 9 + 2, first_step=5,
        start_step=25, first_row=17,
    )  # fmt: skip
    assert list(order)[20:] == list(again)


def words_of_two(tmp_path, *more: str) -> list[str]:
    for name in ("a", "b"):
        texts = [f"The {name} story number {n} begins. It is {name}. It ends soon." for n in range(40)]
        (tmp_path / f"{name}.txt").write_text("\n\n".join(texts))
    sources = f"data.sources=[{{files:[{tmp_path}/a.txt]}},{{files:[{tmp_path}/b.txt],weight:2}}]"
    return [
        "data=mixture", sources, "debug=smoke", "tokenizer.vocab_size=300", "data.workers=1",
        "data.max_documents=null", f"data.folder={tmp_path / 'prepared'}", *more,
    ]  # fmt: skip


@pytest.mark.parametrize("shards", ["64", "0.001"])
def test_the_folder_knows_which_examples_are_of_which_source(tmp_path, shards):
    words = words_of_two(tmp_path, f"data.shard_megabytes={shards}")
    prepared = prepare(compose("prepare", words).preparation, show_progress=False)
    sizes = prepared.manifest["training_chunks"]
    assert len(prepared.manifest["shards"]["train"]) > (1 if shards != "64" else 0)
    split, tokenizer = prepared.split("train"), prepared.tokenizer()
    assert sum(sizes) == len(split)
    for index in range(len(split)):
        assert ("b story" in tokenizer.decode(split[index][0])) == (index >= sizes[0])
    assert mixture_of(prepared, ()) is None
    assert len(mixture_of(prepared, (0, 1))) == sizes[1]


def test_weights_of_other_sources_and_of_older_folders_are_one_line(tmp_path):
    prepared = prepare(compose("prepare", words_of_two(tmp_path)).preparation, show_progress=False)
    with pytest.raises(UserError, match=r"3 weights, and the corpus has 2 sources: write one"):
        mixture_of(prepared, (1, 1, 1))
    with pytest.raises(UserError, match=r"leave no example: write higher ones"):
        mixture_of(prepared, (0.001, 0))
    manifest = json.loads((prepared.folder / "manifest.json").read_text())
    del manifest["training_chunks"]
    with pytest.raises(UserError, match=r"prepare it anew \(delete the folder\), or leave the weights"):
        mixture_of(PreparedData(prepared.folder, manifest), (1, 1))
