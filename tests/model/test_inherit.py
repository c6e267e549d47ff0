"""Whatever starts from a checkpoint has the checkpoint's configuration, but for what somebody wrote."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import BertConfig, BertForPreTraining, PreTrainedTokenizerFast

from nystromformer import NystromformerConfig, NystromformerForPreTraining
from nystromformer.cli import main
from nystromformer.errors import UserError
from nystromformer.model.configuration import CONFIGURATION
from nystromformer.model.source import Source, open_source
from nystromformer.settings import ModelSettings, PretrainSettings
from nystromformer.settings.compose import compose
from nystromformer.settings.finetune import FinetuneSettings
from nystromformer.settings.model import INHERITED, configuration_name
from nystromformer.tasks.setup import read_checkpoint
from nystromformer.training.start import model_config, settled

SHAPE = {
    "vocab_size": 77,
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 48,
    "pad_token_id": 3,
}
OTHER: dict[str, Any] = {
    **SHAPE,
    "attention": "performer",
    "num_landmarks": 5,
    "landmarks": "uniform",
    "pinv_iterations": None,
    "neighbours": 6,
    "salient_tokens": 3,
    "linformer_projected": 9,
    "linformer_share_heads": False,
    "longformer_window": 11,
    "performer_features": 10,
    "conv_kernel_size": None,
    "hidden_act": "relu",
    "hidden_dropout_prob": 0.25,
    "attention_probs_dropout_prob": 0.35,
    "classifier_dropout": 0.45,
    "type_vocab_size": 3,
    "initializer_range": 0.3,
    "layer_norm_eps": 1e-3,
    "tie_word_embeddings": False,
}
"""A value of each field that is not its default; SHAPE's are small enough to be made in no time."""

DEFAULT = NystromformerConfig()
MECHANISMS: list[dict[str, Any]] = [
    {"attention": name} for name in ("softmax", "linformer", "longformer", "performer")
]
CASES = [{name: value} for name, value in OTHER.items()] + MECHANISMS
CASES += [{"attention": "linformer", "linformer_projected": 9, "linformer_share_heads": False}, OTHER]


def save_tokenizer(folder: Path) -> None:
    vocabulary = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[PAD]": 3, "[MASK]": 4}
    vocabulary |= {f"word{number}": number for number in range(5, 60)}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]")),
        unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", mask_token="[MASK]",
    ).save_pretrained(folder)  # fmt: skip


def checkpoint(folder: Path, **changes) -> NystromformerForPreTraining:
    torch.manual_seed(0)
    model = NystromformerForPreTraining(NystromformerConfig(**{**SHAPE, **changes}))
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return model


@cache
def pretraining(*words: str) -> PretrainSettings:
    composed = compose("pretrain", ["experiment=demo", "init.path=somewhere", *words])
    assert isinstance(composed, PretrainSettings)
    return composed


@cache
def finetuning(*words: str) -> FinetuneSettings:
    composed = compose("finetune", ["task=sst2", "checkpoint=somewhere", *words])
    assert isinstance(composed, FinetuneSettings)
    return composed


def started(folder: Path, *words: str, start: str = "checkpoint") -> NystromformerConfig:
    """The configuration that `nystromformer pretrain` trains."""
    composed = pretraining(f"init={start}", *words)
    # In a folder of its own: a run of the same name in the current one would go on with its settings.
    init = replace(composed.init, path=str(folder))
    composed = replace(composed, init=init, runs_folder=str(folder / "runs"))
    source = open_source(str(folder), start)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    return model_config(settled(composed).model, tokenizer, source)


def finetuned(folder: Path, *words: str) -> NystromformerConfig:
    return read_checkpoint(replace(finetuning(*words), checkpoint=str(folder))).config


def converted(folder: Path, *words: str) -> NystromformerForPreTraining:
    assert main(["convert", f"source={folder}", f"target={folder / 'converted'}", *words]) == 0
    return NystromformerForPreTraining.from_pretrained(folder / "converted")


def fields_of(config: NystromformerConfig) -> dict:
    return {name: getattr(config, name) for name in CONFIGURATION}


def test_every_field_has_a_value_to_be_tried():
    assert set(OTHER) == set(CONFIGURATION)
    assert all(value != getattr(DEFAULT, name) for name, value in OTHER.items())


def test_every_field_of_the_configuration_that_pretraining_can_set_is_inherited():
    set_by_hand = {configuration_name(name) for name in INHERITED} - {"max_length"}
    assert set_by_hand <= set(CONFIGURATION)
    assert all(hasattr(ModelSettings(), name) for name in INHERITED)


@pytest.mark.parametrize(
    "changes", CASES, ids=lambda changes: "+".join(changes) if len(changes) < 5 else "all"
)
def test_unwritten_field_is_the_checkpoints_in_every_command(tmp_path, changes):
    source = checkpoint(tmp_path, **changes)
    wanted = fields_of(source.config)
    assert fields_of(started(tmp_path)) == wanted
    assert fields_of(finetuned(tmp_path)) == wanted
    found = converted(tmp_path)
    assert fields_of(found.config) == wanted
    before, after = source.state_dict(), found.state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=0)


WRITTEN = {
    "model.num_landmarks=7": ("num_landmarks", 7),
    "model.attention=softmax": ("attention", "softmax"),
    "model.conv_kernel_size=null": ("conv_kernel_size", None),
    "model.pinv_iterations=null": ("pinv_iterations", None),
    "model.hidden_dropout=0.0": ("hidden_dropout_prob", 0.0),
    "model.max_length=64": ("max_position_embeddings", 64),
    "model.max_length=32": ("max_position_embeddings", 48),
    "model.max_position_embeddings=96": ("max_position_embeddings", 96),
    "model.salient_tokens=5": ("salient_tokens", 5),
}


@pytest.mark.parametrize("word", WRITTEN)
def test_written_setting_wins_and_changes_nothing_else(tmp_path, word):
    source = checkpoint(tmp_path, hidden_dropout_prob=0.2)
    name, value = WRITTEN[word]
    found = fields_of(started(tmp_path, word))
    assert found[name] == value
    assert {key for key, v in fields_of(source.config).items() if found[key] != v} <= {name}


def test_model_named_on_the_command_line_is_written(tmp_path):
    checkpoint(tmp_path)
    with pytest.raises(UserError, match=r"has hidden_size=24, and model.hidden_size=512: write model.hid"):
        started(tmp_path, "model=small")


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("model.hidden_size=48", "has hidden_size=24, and model.hidden_size=48: write model.hidden_size=24"),
        ("model.num_hidden_layers=2", "write model.num_hidden_layers=1"),
        ("model.num_attention_heads=5", "num_attention_heads=5 does not divide hidden_size=24"),
        ("model.conv_kernel_size=15", "write model.conv_kernel_size=33"),
        ("model.max_position_embeddings=8 model.max_length=16", "beyond the position table"),
    ],
)
def test_what_the_source_cannot_become_is_one_line(tmp_path, word, line):
    checkpoint(tmp_path)
    with pytest.raises(UserError) as told:
        started(tmp_path, *word.split())
    assert line in str(told.value)
    assert "\n" not in str(told.value)


def test_bert_keeps_its_own_and_gets_the_papers_attention(tmp_path):
    bert = BertConfig(
        vocab_size=77, hidden_size=24, num_hidden_layers=1, num_attention_heads=3, intermediate_size=40,
        max_position_embeddings=48, pad_token_id=3, hidden_dropout_prob=0.25, classifier_dropout=0.45,
        attention_probs_dropout_prob=0.35, initializer_range=0.3, layer_norm_eps=1e-3, hidden_act="relu",
    )  # fmt: skip
    BertForPreTraining(bert).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    shared = {name: getattr(bert, name) for name in CONFIGURATION if hasattr(bert, name)}
    for config in (started(tmp_path, start="bert"), finetuned(tmp_path), converted(tmp_path).config):
        assert {name: getattr(config, name) for name in shared} == shared
        assert (config.attention, config.num_landmarks, config.conv_kernel_size) == ("nystrom", 64, 33)


def test_exact_model_made_a_nystromformer_gets_a_convolution(tmp_path):
    checkpoint(tmp_path, attention="softmax", conv_kernel_size=None)
    assert started(tmp_path, "model.attention=nystrom").conv_kernel_size == 33
    assert finetuned(tmp_path, "model.attention=nystrom").conv_kernel_size == 33
    assert converted(tmp_path, "attention=nystrom").config.conv_kernel_size == 33


def test_without_segments_is_two_kinds_of_one_row():
    shape = {**SHAPE, "type_vocab_size": 1}
    source = Source("here", "RoBERTa", NystromformerConfig(**shape), lambda: ({}, []))
    assert source.configuration({}).type_vocab_size == 2


def test_from_scratch_nothing_is_a_sources(tmp_path):
    composed = compose("pretrain", ["experiment=demo"])
    assert composed.model.from_source == []
    assert settled(composed) is composed
    with pytest.raises(UserError, match=r"model.num_landmarks has no source to come from"):
        compose("pretrain", ["model.from_source=[num_landmarks]"])


@pytest.fixture(scope="module")
def small_bert(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("small_bert")
    shape = {**SHAPE, "hidden_act": "gelu", "pad_token_id": 0}
    BertForPreTraining(BertConfig(**shape)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("words", "on_gpu", "expected"),
    [
        ([], False, 64),
        ([], True, None),
        (["model.neighbours=null"], False, None),
        (["model.neighbours=16"], True, 16),
        (["model.attention=softmax"], False, None),
        (["experiment=base_512"], False, None),
    ],
)
def test_a_bert_starts_with_exact_neighbours_on_a_cpu(
    words, on_gpu, expected, small_bert, monkeypatch, tmp_path
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpu)
    own = ["init=bert"] if not words or "experiment" not in words[0] else []
    start = [*words, *own, f"init.path={small_bert}", f"runs_folder={tmp_path}", "model.max_length=48"]
    run = settled(compose("pretrain", start))
    assert isinstance(run, PretrainSettings)
    assert run.model.neighbours == expected


def test_what_is_no_bert_keeps_what_it_has(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    checkpoint(tmp_path)
    assert started(tmp_path).neighbours is None
