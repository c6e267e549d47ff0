"""Runs of several phases, decays from another run's checkpoint, and masked tokens without sentence order."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForMaskedLM

from nystromformer.cli import main
from nystromformer.training.checkpoint import saved_steps

from .conftest import words_of
from .runs import events, losses, on_processes, same_weights

STABLE = [
    "training.decay=none", "training.log_every=1", "training.checkpoint_every=4", "training.validate_every=4",
    "training.keep_checkpoints=9", "training.warmup_steps=2", "model.hidden_dropout=0.1",
]  # fmt: skip


def run(words: list[str], name: str) -> int:
    return main(["pretrain", *words, f"name={name}"])


@pytest.fixture(scope="module")
def stable(corpus, prepared, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stable")
    assert run([*words_of(corpus, prepared, folder), *STABLE, "training.steps=12"], "stable") == 0
    return folder / "runs/stable"


def decay(step: int, kind: str = "sqrt") -> list[str]:
    return [f"training.steps={step + 4}", f"training.decay={kind}", "training.decay_steps=4"]


def test_decays_from_one_stable_run_are_the_runs_that_were_planned_so(overrides, stable, tmp_path, capsys):
    for step in (8, 12):
        words = [*overrides, *STABLE, *decay(step)]
        branch = [f"branch={stable / 'checkpoints' / f'step-{step}'}"]
        assert run([*words, *branch], f"decay{step}") == 0
        assert f"from {branch[0].partition('=')[2]}" in capsys.readouterr().out
        assert run(words, f"planned{step}") == 0
        one, other = (tmp_path / f"runs/{name}{step}" for name in ("decay", "planned"))
        assert [e["step"] for e in events(one, "train")] == list(range(1, step + 5))
        assert losses(one) == losses(other)
        assert same_weights(one, other)
        assert saved_steps(one / "checkpoints") == [step + 4], "it computed its own steps alone"
    # The folder is its own: it no longer needs the other run.
    stable.rename(stable.with_name("away"))
    assert run([*words, *branch], "decay12") == 0
    stable.with_name("away").rename(stable)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["training.seed=1"], "of a run with training.seed=0, and now training.seed=1"),
        (["model.hidden_size=32"], "of a run with model.hidden_size=64"),
        (["training.learning_rate=2e-3"], "the rate of step 1 was 0.0015, and would be 0.001"),
        (["training.decay_steps=8"], "the rate of step 6 was 0.003, and would be"),
        (["training.global_batch_size=16"], "step 1 was of 8 rows, at most 64 tokens, 15% masked, and"),
        (["data.masking_probability=0.3"], "step 1 was of 8 rows, at most 64 tokens, 15% masked, and"),
        (["training.steps=8", "training.decay_steps=1"], "leaves none of the 8 steps to do"),
        (["branch=BRANCH/../step-9"], "is no checkpoint of a run: "),
        (["branch=nowhere"], "write branch=runs/NAME/checkpoints/step-N"),
    ],
)  # fmt: skip
def test_another_past_is_refused_in_one_line(overrides, stable, tmp_path, words, told, capsys):
    branch = str(stable / "checkpoints/step-8")
    words = [f"branch={branch}", *(word.replace("BRANCH", branch) for word in words)]
    assert run([*overrides, *STABLE, *decay(8), *words], "other") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert told in line
    assert not list(tmp_path.glob("runs/other/checkpoints/step-*"))


def test_a_damaged_checkpoint_and_other_data_are_refused(overrides, stable, tmp_path, capsys):
    branch = stable / "checkpoints/step-8"
    words = [*overrides, *STABLE, *decay(8), f"branch={branch}"]
    content = (branch / "model.safetensors").read_bytes()
    (branch / "model.safetensors").write_bytes(content[:-4] + b"0000")
    assert run(words, "damaged") == 2
    assert "is damaged (its checksum differs): write another one" in capsys.readouterr().err
    (branch / "model.safetensors").write_bytes(content)
    other = tmp_path / "other.txt"
    other.write_text("\n\n".join(f"It is number {n}. It is over." for n in range(90)))
    assert run([*words, f"data.files=[{other}]"], "otherdata") == 2
    assert "files" in capsys.readouterr().err


def test_a_plan_that_does_not_fit_is_told_before_the_data_are_prepared(overrides, tmp_path, capsys):
    words = ["training.phases=[{steps:5}]", "training.warmup_steps=6", f"data.folder={tmp_path / 'none'}"]
    assert run([*overrides, *words], "early") == 2
    assert "training.warmup_steps=6: 6 steps of warm-up" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_the_validation_has_its_own_share_of_masks(overrides, tmp_path):
    shares = ["data.validation_masking_probability=0.15", "data.masking_probability=0.3"]
    fewer = ["data.validation_masking_probability=0.3", "training.static_shapes=true"]
    for name, words in {"usual": [], "more": shares, "all": shares[1:], "fewer": fewer}.items():
        assert run([*overrides, "training.steps=1", "training.warmup_steps=0", *words], name) == 0
    usual, more, everywhere, static = (
        events(tmp_path / "runs" / name, "validation")[0] for name in ("usual", "more", "all", "fewer")
    )
    assert (more["tokens"], more["unigram_loss"]) == (usual["tokens"], usual["unigram_loss"])
    assert static["unigram_loss"] == pytest.approx(everywhere["unigram_loss"], abs=1e-4)
    assert static["tokens"] == everywhere["tokens"]
    assert everywhere["tokens"] == pytest.approx(2 * usual["tokens"], rel=0.05)


ALONE = ["data.sentence_order=false", "training.log_every=1", "training.phases=[{steps:3},{steps:3}]"]


def test_masked_tokens_alone(overrides, tmp_path, capsys):
    assert run([*overrides, *ALONE], "alone") == 0
    assert "entence order" not in capsys.readouterr().out
    folder = tmp_path / "runs/alone"
    for kind in ("train", "validation"):
        event = events(folder, kind)[-1]
        assert not [name for name in event if "sop" in name]
        assert event["mlm_loss"] > 0
    assert events(folder, "train")[-1]["loss"] == events(folder, "train")[-1]["mlm_loss"]
    page, card = (folder / "report.md").read_text(), (folder / "model/README.md").read_text()
    assert "order" not in page + card
    assert "1. 3 steps of 8 rows, at most 64 tokens, 15% masked" in page
    assert "sop" not in (folder / "report.json").read_text()
    assert AutoModelForMaskedLM.from_pretrained(folder / "model") is not None


@pytest.mark.slow
def test_phases_and_masked_tokens_alone_on_two_processes(overrides, tmp_path):
    phases = "training.phases=[{steps:4,max_length:32},{steps:4,global_batch_size:4}]"
    words = [*overrides, *ALONE[:2], phases, "model.hidden_dropout=0", "training.warmup_steps=2"]
    assert run(words, "one") == 0
    on_processes(2, [*words, "name=two"])
    one, two = ([e["mlm_loss"] for e in events(tmp_path / "runs" / name, "train")] for name in ("one", "two"))
    assert two == pytest.approx(one, abs=1e-3)
