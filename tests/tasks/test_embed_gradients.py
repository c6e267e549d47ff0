"""Gradients of task=embed: a large batch in parts has those of the whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

from nystromformer.model.embedding import NystromformerForEmbedding
from nystromformer.model.source import open_source, open_tokenizer
from nystromformer.tasks import rows
from nystromformer.tasks.kinds.embed import EmbedTask
from nystromformer.tasks.task import Examples

PAIRS = EmbedTask("embed", "embedding", text="query", text_pair="passage", metrics=("mrr", "accuracy"))


def encoded_pairs(checkpoint: Path, path: Path, **changes):
    content = [json.loads(line) for line in path.read_text().splitlines()[:12]]
    texts = [(row["query"], row["passage"], *row["wrong"]) for row in content]
    task = replace(PAIRS, negatives=("wrong",), **changes)
    tokenizer = open_tokenizer(None, str(checkpoint))
    return task, task.encode(Examples(texts, [0] * 12, [""] * 12), tokenizer, 48)


def model_of(checkpoint: Path, **changes) -> NystromformerForEmbedding:
    source = open_source(str(checkpoint), setting="checkpoint")
    return source.model_with_head(NystromformerForEmbedding, source.configuration(changes))[0].train()


def gradient(task: EmbedTask, model: torch.nn.Module, batch) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    torch.manual_seed(5)
    loss = task.loss(model, batch)
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_texts_of_an_example_stay_together(checkpoint, pairs):
    task, encoded = encoded_pairs(checkpoint, pairs)
    batch = task.training_batch(encoded, [4, 7, 1], 0, 2)
    of_rows = [row.tolist() for name, x in batch.items() if name.startswith("input_ids") for row in x]
    texts = [of_rows[place] for place in batch["order"].tolist()]
    wanted = [ids for row in (4, 7, 1) for ids in encoded.input_ids[row]]
    assert [[token for token in ids if token] for ids in texts] == wanted
    assert batch["texts"].tolist() == [3, 4, 4]
    assert [texts[n] for n in batch["anchors"].tolist()] == [texts[0], texts[3], texts[7]]
    candidates = batch["candidates"].tolist()
    assert [candidates[n] for n in batch["right"].tolist()] == [1, 4, 8]
    lengths = np.array([9, 9, 3, 2])
    assert rows.parts_of_like_length(lengths, None) == [slice(0, 2), slice(2, 4)]
    assert rows.parts_of_like_length(lengths[:2], None) == [slice(0, 2)]


@pytest.mark.parametrize("layers_again", [False, True])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(layers_again, checkpoint, pairs):
    task, encoded = encoded_pairs(checkpoint, pairs, symmetric=True)
    model = model_of(checkpoint, hidden_dropout_prob=0.0)
    loss, wanted = gradient(task, model, task.training_batch(encoded, range(12), 0, None))
    if layers_again:
        model.gradient_checkpointing_enable()
    for at_once in (1, 5, 100):
        batch = task.training_batch(encoded, range(12), 0, at_once)
        assert max(len(x) for name, x in batch.items() if name.startswith("input_ids")) <= at_once
        found, parts = gradient(task, model, batch)
        assert found == pytest.approx(loss, rel=1e-5)
        assert parts.keys() == wanted.keys()
        scale = max(x.abs().max() for x in wanted.values())
        for name, expected in wanted.items():
            torch.testing.assert_close(parts[name], expected, rtol=1e-4, atol=1e-5 * float(scale), msg=name)


def test_what_is_computed_again_is_what_was_computed_dropout_and_all(checkpoint, pairs):
    task, encoded = encoded_pairs(checkpoint, pairs)
    model = model_of(checkpoint, hidden_dropout_prob=0.3)
    batch = task.training_batch(encoded, range(12), 0, 5)
    again, parts = gradient(task, model, batch)
    kept, wanted = gradient(task, model, {k: x for k, x in batch.items() if k != "recompute"})
    assert again == kept
    assert all(torch.equal(parts[name], wanted[name]) for name in wanted)


def test_of_a_part_nothing_is_kept_but_its_vectors(checkpoint, pairs):
    task, encoded = encoded_pairs(checkpoint, pairs)
    model = model_of(checkpoint)

    def kept(at_once: int | None) -> int:
        found: list[int] = []

        def note(x: torch.Tensor) -> torch.Tensor:
            found.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            task.loss(model, task.training_batch(encoded, range(12), 0, at_once))
        return sum(found)

    assert kept(1) < kept(None) / 20


def test_the_gradient_is_that_of_sentence_transformers_cached_loss(checkpoint, pairs, tmp_path):
    task, encoded = encoded_pairs(checkpoint, pairs)
    model = model_of(checkpoint, hidden_dropout_prob=0.0)
    write_folder(model, task, checkpoint, tmp_path / "model")
    theirs = SentenceTransformer(str(tmp_path / "model"), device="cpu").train()
    content = [json.loads(line) for line in pairs.read_text().splitlines()[:12]]
    # One wrong passage each, as their columns are all of one length.
    texts = [(row["query"], row["passage"], row["wrong"][0]) for row in content]
    tokenizer = open_tokenizer(None, str(checkpoint))
    encoded = task.encode(Examples(texts, [0] * 12, [""] * 12), tokenizer, 48)
    _, wanted = gradient(task, model, task.training_batch(encoded, range(12), 0, 4))
    columns = [theirs.preprocess(list(column)) for column in zip(*texts, strict=True)]
    CachedMultipleNegativesRankingLoss(theirs, scale=20.0, mini_batch_size=4)(columns, None).backward()
    found = {name: p.grad for name, p in theirs[0].model.named_parameters() if p.grad is not None}
    assert len(found) == len(wanted)
    scale = max(x.abs().max() for x in wanted.values())
    for name, expected in wanted.items():
        torch.testing.assert_close(
            found[name.removeprefix("nystromformer.")], expected, rtol=1e-3, atol=1e-4 * float(scale)
        )


def write_folder(model, task: EmbedTask, checkpoint: Path, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer = open_tokenizer(None, str(checkpoint))
    tokenizer.model_max_length = 48
    tokenizer.save_pretrained(folder)
    for path, content in task.files(model.config, 48).items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(json.dumps(content))
