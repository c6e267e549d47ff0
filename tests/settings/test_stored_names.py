"""Folders that an earlier version made are found and recognised: their names and records are as they were.

The digests are those of commit 2db27f1. They are never computed anew: what a later version adds or renames
must give the same.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from nystromformer.data import plan as planning
from nystromformer.data.plan import plan, settings_that_matter
from nystromformer.reproduce.lra.training import Cell
from nystromformer.reproduce.result import configuration_of
from nystromformer.settings.compose import compose
from nystromformer.settings.scale import LraScale
from nystromformer.tasks.identity import identity

TEXT = ["data=text", "data.files=[a.txt]"]
TWO = "data.sources=[{files:[a.txt],weight:2},{kind:text,files:[a.txt],max_documents:5}]"
AT_LOAD_TIME = ["data.masking=ngram", "data.masking_probability=0.2", "data.malformed_rows=skip"]
NEWER = {
    "task.kind": "sequence", "data.labels": [], "data.label_separator": "comma", "data.tokens": "tokens",
    "data.tags": "tags", "data.scheme": "auto", "data.repair_tags": False, "data.unit": "document",
    "data.stride": 128, "data.max_answer_tokens": 30, "data.hub": None, "data.hub_config": None,
    "data.hub_splits": [], "task.loss": None, "task.temperature": 0.05, "task.symmetric": False,
    "data.negatives": [], "data.pairs": "columns", "data.remove_repeated": False, "data.vectors": None,
    "data.dev_vectors": None, "data.candidates": 8, "data.mined": "bm25", "data.one_is_best": False,
}  # fmt: skip
"""Settings of fine-tuning that did not exist then, each with what was computed then."""


def digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("words", "folder", "settings"),
    [
        (TEXT, "5e979425320a4a08", "695ed6381a1b5201"),
        (
            [*TEXT, "data.workers=3", "data.verify=true", *AT_LOAD_TIME],
            "5e979425320a4a08",
            "695ed6381a1b5201",
        ),
        (
            [*TEXT, "data.validation_documents=3", "data.max_documents=9", "model.max_length=64",
             "data.short_sequence_probability=0.5", "training.seed=7"],
            "f1f9a0069f8044bf",
            "f7cd26b331a1278d",
        ),
        (
            [*TEXT, "tokenizer.kind=unigram", "tokenizer.vocab_size=400", "tokenizer.lowercase=false"],
            "089e79c649ed3b09",
            "f85c355f847d9f0e",
        ),
        (["data=mixture", TWO], "9edbc09713eac162", "e6ccf2463b7368ff"),
    ],
    ids=["defaults", "what changes no file", "shares", "tokenizer", "mixture"],
)  # fmt: skip
def test_prepared_folders(tmp_path, monkeypatch, words, folder, settings):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("One sentence. Another one.\n")
    monkeypatch.setattr(planning, "_version", lambda package: "1")
    preparation = compose("pretrain", words).preparation
    made = plan(preparation)
    assert made.digest.startswith(folder)
    assert made.folder.name == f"{preparation.data.corpus}-{made.digest[:12]}"
    assert digest(settings_that_matter(preparation)) == settings


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        (["task=sst2"], "1c4cdff9468fbada"),
        (
            ["task=custom", "data.train=a.csv", "task.epochs=2", "model.attention=softmax",
             "training.beta2=0.98", "seeds=3", "training.micro_batch_size=4"],
            "56c7dbee45d815ea",
        ),
        (
            ["task=mrpc", "tokenizer_path=t", "model.max_length=1024", "data.malformed_rows=skip",
             "model.gradient_checkpointing=true"],
            "68f1ccee720c287c",
        ),
    ],
    ids=["defaults", "custom", "model"],
)  # fmt: skip
def test_finetuned_folders(words, settings):
    composed = compose("finetune", [*words, "checkpoint=c"])
    now = identity(composed, composed.task)
    assert {key: now.pop(key) for key in NEWER} == NEWER
    then = {"model.short_rows": None}  # removed since
    assert digest({**now, **then}) == settings


@pytest.mark.parametrize(
    ("cell", "scale", "device", "folder"),
    [
        (Cell("listops", "nystrom", 0), LraScale(), "cpu", "listops_nystrom_seed0_e9cc5c28"),
        (
            Cell("text", "softmax", 3),
            LraScale(text_steps=7, listops_steps=9, seeds=[3]),
            "cuda",
            "text_softmax_seed3_bd0deb0a",
        ),
        (
            Cell("listops", "performer", 1),
            LraScale(landmarks=32, kernel=None, listops_depth=4, text_length=100),
            "cpu",
            "listops_performer_seed1_dd5d70ab",
        ),
    ],
    ids=["defaults", "text", "overridden"],
)
def test_cells_of_the_arena(tmp_path, cell, scale, device, folder):
    place = cell.folder(str(tmp_path), scale, device, "abc")
    assert place == tmp_path / "lra" / folder


@pytest.mark.parametrize(
    ("name", "words", "configuration"),
    [
        ("efficiency", ["table=efficiency", "scale=gpu"], "c6d7757fb78e250b"),
        ("landmarks", ["figure=landmarks", "checkpoint=x/y"], "a427f3086a676557"),
        ("glue", ["table=glue", "scale=cpu", "glue_root=/a/glue"], "2e98e845b0133ec9"),
        ("lra", ["table=lra", "scale=smoke", "scale.lra.seeds=[1]"], "fca15deb6222a492"),
        (
            "small",
            ["figure=small", "scale=cpu", 'overrides=["data.workers=1","data.bookcorpus=/mnt/books"]'],
            "c8efb7852d643404",
        ),
    ],
    ids=["efficiency", "landmarks", "glue", "lra", "small"],
)
def test_results(name, words, configuration):
    assert digest(configuration_of(compose("reproduce", words), name, "cpu")) == configuration
