"""Every YAML in configs/ composes, and the experiments hold the paper's numbers."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from omegaconf import OmegaConf

from nystromformer.settings import PretrainSettings
from nystromformer.settings.compose import (
    OF_SOURCE,
    SCHEMAS,
    as_yaml,
    compose,
    config_folder,
    groups_in,
    resolve,
)
from nystromformer.settings.finetune import FinetuneSettings
from nystromformer.settings.model import INHERITED
from nystromformer.settings.reproduce import ReproduceSettings

GROUPS = groups_in(config_folder())
OPTIONS = [(group, option) for group, options in GROUPS.items() for option in options]
PRETRAINING_OPTIONS = [pair for pair in OPTIONS if pair[0] not in ("task", "scale")]
# Options that are incomplete without a word of their user's.
NEEDED = {
    ("data", "text"): ["data.files=[a.txt]"],
    ("data", "mixture"): ["data.sources=[{files:[a.txt],weight:0.5},{kind:wikipedia}]"],
    ("init", "checkpoint"): ["init.path=somewhere"],
    ("init", "bert"): ["tokenizer=bert"],
}
PAPER = ["small_512", "bert_small_512", "base_512", "bert_base_512"]


def test_every_yaml_is_a_command_or_an_option():
    folder = config_folder()
    files = {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.y*ml")}
    assert files == {*SCHEMAS, *(f"{group}/{option}" for group, option in OPTIONS)}


@pytest.mark.parametrize("command", ["pretrain", "prepare"])
@pytest.mark.parametrize(("group", "option"), PRETRAINING_OPTIONS)
def test_option_composes(command, group, option):
    settings = compose(command, [f"{group}={option}", *NEEDED.get((group, option), [])])
    assert isinstance(settings, PretrainSettings)


OWN_DATA = ("choice", "custom", "embed", "multi_label", "ner", "numbers", "qa", "rerank", "squad", "tokens")
"""Tasks that are nothing without a file."""


@pytest.mark.parametrize("option", GROUPS["task"])
def test_task_composes(option):
    more = ["data.train=a.csv", "data.labels=[a]", "data.pairs=spans"] if option in OWN_DATA else []
    settings = compose("finetune", [f"task={option}", "checkpoint=somewhere", *more])
    assert isinstance(settings, FinetuneSettings)
    assert settings.task.name == option


@pytest.mark.parametrize("option", GROUPS["scale"])
def test_scale_composes(option):
    settings = compose("reproduce", ["all=true", f"scale={option}"])
    assert isinstance(settings, ReproduceSettings)
    assert settings.scale.name == option
    assert settings.scale.told


def test_paper_finetuning():
    """Batch 32, 3e-5, 4 epochs; MRPC searched over three batches and four rates."""
    for option in set(GROUPS["task"]) - {"mrpc", "glue", *OWN_DATA}:
        task = compose("finetune", [f"task={option}", "checkpoint=somewhere"]).task
        assert (task.batch_sizes, task.learning_rates, task.epochs) == ([32], [3e-5], 4)
    mrpc = compose("finetune", ["task=mrpc", "checkpoint=somewhere"]).task
    assert (mrpc.batch_sizes, mrpc.learning_rates) == ([8, 16, 32], [2e-5, 3e-5, 4e-5, 5e-5])


@pytest.mark.parametrize(("group", "option"), PRETRAINING_OPTIONS)
def test_option_composes_with_smoke(group, option):
    overrides = [f"{group}={option}", "debug=smoke", *NEEDED.get((group, option), [])]
    settings = compose("pretrain", overrides)
    assert settings.name == "smoke"
    assert settings.training.steps == 12
    assert settings.model.hidden_size == 64


@pytest.mark.parametrize("group", GROUPS)
def test_every_option_says_in_a_comment_what_it_is(group):
    assert all(GROUPS[group].values())


@pytest.mark.parametrize("overrides", [[], ["experiment=base_512"], ["debug=smoke", "model=bert_small"]])
def test_prepare_prepares_what_pretrain_reads(overrides):
    assert compose("prepare", overrides).preparation == compose("pretrain", overrides).preparation


@pytest.mark.parametrize("experiment", PAPER)
def test_paper_optimizer(experiment):
    training = compose("pretrain", [f"experiment={experiment}"]).training
    assert training.global_batch_size == 256
    assert training.learning_rate == 1e-4
    assert (training.beta1, training.beta2) == (0.9, 0.999)
    assert training.weight_decay == 0.01
    assert training.warmup_steps == 10_000


@pytest.mark.parametrize(
    ("experiment", "steps", "layers", "hidden", "heads", "intermediate", "attention", "init"),
    [
        ("small_512", 100_000, 4, 512, 8, 2048, "nystrom", "scratch"),
        ("bert_small_512", 100_000, 4, 512, 8, 2048, "softmax", "scratch"),
        ("base_512", 250_000, 12, 768, 12, 3072, "nystrom", "bert"),
        ("bert_base_512", 500_000, 12, 768, 12, 3072, "softmax", "scratch"),
    ],
)
def test_paper_model(experiment, steps, layers, hidden, heads, intermediate, attention, init):
    settings = compose("pretrain", [f"experiment={experiment}"])
    model = settings.model
    if (
        init == "bert"
    ):  # all but the length, and no neighbours, is the source's; from scratch it would be this
        assert model.from_source == [name for name in INHERITED if name not in ("max_length", "neighbours")]
        assert model.neighbours is None
        model = compose("pretrain", [f"experiment={experiment}", "init=scratch"]).model
    assert settings.name == experiment
    assert settings.training.steps == steps
    assert settings.init.source == init
    assert (model.num_hidden_layers, model.hidden_size) == (layers, hidden)
    assert (model.num_attention_heads, model.intermediate_size) == (heads, intermediate)
    assert (model.attention, model.max_length) == (attention, 512)
    if attention == "nystrom":
        assert (model.num_landmarks, model.pinv_iterations, model.conv_kernel_size) == (64, 6, 33)
    else:
        assert (model.conv_kernel_size, model.attention_dropout) == (None, 0.1)
    assert settings.data.corpus == "bookcorpus_wikipedia"
    assert settings.data.validation_fraction == 0.2


@pytest.mark.parametrize(
    ("experiment", "source", "length"),
    [
        ("base_1024", "base_512", 1024),
        ("base_2048", "base_1024", 2048),
        ("base_4096", "base_2048", 4096),
        ("small_1024", "small_512", 1024),
    ],
)
def test_paper_extension(experiment, source, length):
    settings = compose("pretrain", [f"experiment={experiment}"])
    training = settings.training
    assert (training.steps, training.global_batch_size, training.learning_rate) == (40_000, 128, 1e-5)
    assert (training.beta1, training.beta2, training.weight_decay) == (0.9, 0.999, 0.01)
    assert (settings.model.max_length, settings.init.positions) == (length, "tile")
    assert settings.init.path == f"runs/{source}/model"
    assert settings.preparation.tokenizer.path == settings.init.path


def test_what_the_source_decides_is_shown_as_such():
    settings = compose("pretrain", ["init=checkpoint", "init.path=a", "model.conv_kernel_size=null"])
    printed = OmegaConf.to_container(OmegaConf.create(as_yaml(settings)), resolve=False)["model"]
    assert printed["hidden_size"] == printed["salient_tokens"] == OF_SOURCE
    assert printed["conv_kernel_size"] is None
    assert "conv_kernel_size" not in settings.model.from_source
    with pytest.raises(ValueError, match="max_length is the source's"):
        settings.preparation  # noqa: B018


@pytest.mark.parametrize("words", [["model=small"], ["model=small", "experiment=base_1024"]])
def test_model_of_the_command_line_is_written_and_an_experiments_is_not(words):
    settings = compose("pretrain", [*words, "init=checkpoint", "init.path=a"]).model
    assert (settings.hidden_size, settings.num_hidden_layers) == (512, 4)
    assert not {"hidden_size", "max_length", "num_landmarks"} & set(settings.from_source)
    assert "hidden_size" in compose("pretrain", ["experiment=base_1024"]).model.from_source


def test_base_keeps_berts_vocabulary():
    settings = compose("pretrain", ["experiment=base_512"])
    assert settings.tokenizer.path == settings.init.path == "google-bert/bert-base-uncased"


def test_demo_is_the_default():
    assert compose("pretrain") == compose("pretrain", ["experiment=demo"])
    assert compose("pretrain").data.corpus == "imdb"


def test_command_line_beats_experiment():
    settings = compose("pretrain", ["data=text", "data.files=[a.txt]", "experiment=small_512", "model=demo"])
    assert settings.data.corpus == "text"
    assert settings.data.files == ["a.txt"]
    assert settings.model.num_hidden_layers == 2
    assert settings.training.steps == 100_000


def test_smoke_beats_experiment_and_command_line_beats_smoke():
    smoke = compose("pretrain", ["experiment=base_512", "debug=smoke"])
    assert (smoke.init.source, smoke.init.path, smoke.tokenizer.path) == ("scratch", None, None)
    assert smoke.data.corpus == "bookcorpus_wikipedia"
    mine = compose(
        "pretrain", ["debug=smoke", "training.steps=3", "init=checkpoint", "init.path=runs/demo", "name=mine"]
    )
    assert (mine.name, mine.training.steps, mine.init.source) == ("mine", 3, "checkpoint")


def test_a_group_can_be_left_out():
    bare = compose("pretrain", ["experiment=null"])
    assert bare.name == PretrainSettings().name
    assert bare.model.num_hidden_layers == 12


def test_of_two_words_the_later_wins():
    settings = compose("pretrain", ["training.steps=200", "model=small", "training.steps=300", "model=base"])
    assert settings.training.steps == 300
    assert settings.model.num_hidden_layers == 12


def test_printed_yaml_is_the_settings(tmp_path):
    settings = compose("pretrain", ["experiment=small_512"])
    assert OmegaConf.to_container(OmegaConf.create(as_yaml(settings))) == asdict(settings)


def test_choices_name_the_option_of_each_group():
    _, choices = resolve("pretrain", ["experiment=base_512", "tracking=wandb"])
    assert choices["experiment"] == "base_512"
    assert choices["init"] == "bert"
    assert choices["tracking"] == "wandb"
    assert choices["debug"] is None
