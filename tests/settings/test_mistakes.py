"""Each mistake ends in one line that names the key and the fix."""

from __future__ import annotations

import shutil

import pytest

from nystromformer.errors import UserError
from nystromformer.settings import compose as composing
from nystromformer.settings.compose import compose

TOKENIZERS = "tokenizer has bert, bpe, unigram, wordpiece, wordpiece_4k, wordpiece_cased"


def complaint(*overrides: str, command: str = "pretrain") -> str:
    with pytest.raises(UserError) as caught:
        compose(command, overrides)
    message = str(caught.value)
    assert "full_key" not in message
    assert "object_type" not in message
    return message


@pytest.mark.parametrize(
    ("override", "line"),
    [
        # keys
        ("training.stepz=5", "training.stepz is no setting: did you mean training.steps?"),
        ("steps=5", "steps is no setting: did you mean training.steps?"),
        ("tokeniser=bert", "tokeniser is no setting: did you mean tokenizer?"),
        ("training.steps.x=3", "training.steps.x is no setting: did you mean training.steps?"),
        (
            "init.lr=3",
            "init.lr is no setting: init has source, path, output_bias, convolution, convolution_rows, "
            "positions",
        ),
        ("task=sst2", "task is no group of this command: --help lists them all"),
        ("hydra.run.dir=x", "hydra.run.dir is no setting: --help lists them all"),
        # options of groups
        ("tracking=mlflow", "tracking=mlflow is unknown: tracking has none, tensorboard, wandb"),
        (
            "tokenizer=5",
            f"tokenizer=5 is unknown: {TOKENIZERS}",
        ),
        (
            "init=[bert]",
            "init=[bert] is unknown: did you mean init=bert? init has bert, checkpoint, scratch, unigram",
        ),
        ("data={a:1}", "data={a:1} is unknown: data has bookcorpus_wikipedia, imdb, mixture, text"),
        # values
        (
            "training.steps=abc",
            "training.steps=abc is impossible: write a whole number, e.g. training.steps=100000",
        ),
        ("training.steps=1e3", "training.steps=1e3 is impossible: write training.steps=1000"),
        (
            "training.steps=1.5",
            "training.steps=1.5 is impossible: write a whole number, e.g. training.steps=100000",
        ),
        (
            "training.steps=null",
            "training.steps=null is impossible: write a whole number, e.g. training.steps=100000",
        ),
        (
            "training.compile=maybe",
            "training.compile=maybe is impossible: write true or false, e.g. training.compile=false",
        ),
        (
            "training.micro_batch_size=x",
            "training.micro_batch_size=x is impossible: write a whole number or null, "
            "e.g. training.micro_batch_size=null",
        ),
        ("data.files=a.txt", "data.files=a.txt is impossible: write data.files=[a.txt]"),
        ("name=[a]", "name=[a] is impossible: write a text, e.g. name=pretrain"),
        ("name=???", "name=??? is impossible: write a text, e.g. name=pretrain"),
        ("name=${nope}", "name=${nope}: Interpolation key 'nope' not found"),
        ("training.learning_rate=nan", "training.learning_rate=nan is impossible: write a finite number"),
        # syntax
        ("small_512", "'small_512' is no setting: did you mean experiment=small_512?"),
        ("training.steps", "'training.steps' is no setting: write KEY=VALUE, e.g. training.steps=100"),
        ("", "'' is no setting: write KEY=VALUE, e.g. training.steps=100"),
        (
            "+training.steps=5",
            "+training.steps=5: settings cannot be added or removed: write training.steps=VALUE",
        ),
        ("~experiment", "~experiment: settings cannot be added or removed: write experiment=VALUE"),
        ("training.steps=1,2", "training.steps=1,2 names several values: write one, or a list in brackets"),
    ],
)
def test_line(override, line):
    assert complaint(override) == line


@pytest.mark.parametrize("override", ["data.files=[a,b", "name=a (1)", "name=${nope", "model.=3"])
def test_unreadable_override_is_quoted_back(override):
    message = complaint(override)
    assert message.startswith(f"{override} cannot be read: ")
    assert "\n" not in message


def test_mistyped_option_names_the_nearest_and_lists_all():
    message = complaint("experiment=smal_512")
    assert message.startswith("experiment=smal_512 is unknown: did you mean experiment=small_512?")
    assert "bert_base_512" in message


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["model.num_attention_heads=5"], "model.num_attention_heads=5 does not divide"),
        (["model.max_position_embeddings=64"], "model.max_length=128 is beyond the position table"),
        (["model.attention_dropout=0.1"], "model.attention_dropout=0.1 cannot apply"),
        (["training.micro_batch_size=3"], "training.micro_batch_size=3 does not divide"),
        (["training.micro_batch_size=0"], "training.micro_batch_size=0 is impossible"),
        (["training.seed=-1"], "training.seed=-1 is impossible"),
        (
            ["init.convolution=fit"],
            "init.convolution='fit' is unknown: write one of fitted, scaled, reconstructed, zero",
        ),
        (["init.positions=copy"], "init.positions='copy' is unknown: write one of tile, interpolate"),
        (["init.convolution_rows=0"], "init.convolution_rows=0 is impossible: write at least 1"),
        (["init=checkpoint"], "init.path is empty"),
        (["data=text"], "data.files is empty"),
        (["name=a/b"], "name='a/b' is no folder name"),
    ],
)
def test_impossible_combination(overrides, key):
    message = complaint(*overrides)
    assert message.startswith(key)
    assert "\n" not in message
    assert "write" in message


def test_several_complaints_come_at_once():
    message = complaint("training.steps=0", "model.max_length=4")
    assert [line.split("=")[0] for line in message.splitlines()] == [
        "model.max_length",
        "training.steps",
        "training.warmup_steps",
    ]


def test_processes_must_share_the_batch(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert complaint("training.global_batch_size=32").startswith(
        "training.global_batch_size=32 is not divisible by the 3 processes"
    )
    compose("prepare", ["training.global_batch_size=32"])  # prepares for any number of processes


@pytest.fixture
def configs(tmp_path, monkeypatch):
    """A copy of configs/ that a test may spoil."""
    folder = tmp_path / "configs"
    shutil.copytree(composing.config_folder(), folder)
    monkeypatch.setattr(composing, "config_folder", lambda: folder)
    return folder


@pytest.mark.parametrize(
    ("file", "text", "line"),
    [
        (
            "training/demo.yaml",
            "stepz: 5\n",
            "configs/training/demo.yaml: training.stepz is no setting: did you mean training.steps?",
        ),
        (
            "training/demo.yaml",
            "seed: abc\n",
            "configs/training/demo.yaml: training.seed: Value 'abc' of type 'str' could not be converted to "
            "Integer: write a whole number",
        ),
        (
            "experiment/demo.yaml",
            "training: {foo: 1}\n",
            "configs/experiment/demo.yaml: training.foo is no setting: training has steps, ",
        ),
        (
            "experiment/demo.yaml",
            "# @package _global_\ndefaults:\n  - override /tokenizer: nope\n",
            f"tokenizer=nope is unknown: {TOKENIZERS}",
        ),
        (
            "experiment/demo.yaml",
            "# @package _global_\ndefaults:\n  - override /tokeniser: bert\n",
            "configs/experiment/demo.yaml: tokeniser is no group of this command",
        ),
    ],
)
def test_mistake_in_a_file_names_the_file(configs, file, text, line):
    with (configs / file).open("w" if "@package" in text else "a") as stream:
        stream.write(text)
    message = complaint()
    assert message.startswith(line)
    assert "\n" not in message


def test_broken_yaml_names_file_and_line(configs):
    file = configs / "training" / "demo.yaml"
    file.write_text("steps: 5\nseed: [1\n")
    message = complaint()
    assert message.startswith(f"{file}, line 3: this is no YAML: ")
    assert "\n" not in message


@pytest.mark.parametrize("content", [b"steps: \xff\n", b"- a\n", b"just words\n"])
def test_a_file_that_is_no_settings_at_all(configs, content):
    (configs / "training" / "demo.yaml").write_bytes(content)
    assert "\n" not in complaint()


def test_a_missing_tree_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(composing.nystromformer, "__file__", str(tmp_path / "package" / "__init__.py"))
    assert "install nystromformer again" in complaint()
