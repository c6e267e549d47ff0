"""What fine-tuning has of the loop that it shares: processes, trackers, traces, the guard."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from nystromformer.cli import main
from nystromformer.errors import UserError
from nystromformer.model.encoder import NystromformerIntermediate
from nystromformer.settings.compose import compose
from nystromformer.settings.finetune import FinetuneSettings
from nystromformer.tasks.finetune import begin
from nystromformer.training import loop

from ..training.runs import events, on_processes
from .conftest import planted

CALM = ["model.hidden_dropout=0", "training.log_every=1", "training.evaluations_per_epoch=3"]
CELL = "custom/rate0.001_batch8"


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    """Texts of 6 to 12 tokens, of which one word tells the label."""
    draw, path = random.Random(0), tmp_path_factory.mktemp("own") / "mine.csv"
    rows = [f"{planted(n % 3, draw, words=draw.randint(3, 9))},{'abc'[n % 3]}" for n in range(60)]
    path.write_text("\n".join(["text,label", *rows]))
    return path


def figures(run: Path, seed: int) -> list[list]:
    """Step, loss and score of everything that a seed wrote down."""
    found = [
        *events(run / CELL / f"seed-{seed}", "train"),
        *events(run / CELL / f"seed-{seed}", "validation"),
    ]
    return [[event["kind"], event["step"], event["loss"], event.get("score")] for event in found]


@pytest.mark.slow
def test_two_processes_train_seeds_as_one_and_go_on_with_what_one_began(own, words, tmp_path, monkeypatch):
    task = [
        "task=custom",
        f"data.train={own}",
        *CALM,
        "seeds=2",
    ]
    assert main(words(*task, "name=one")) == 0
    step, done = loop.train_step, []

    def killed(*arguments, **named):
        if len(done) == 4:
            raise ZeroDivisionError
        done.append(1)
        return step(*arguments, **named)

    monkeypatch.setattr(loop, "train_step", killed)
    with pytest.raises(ZeroDivisionError):
        main(words(*task, "name=two"))
    printed = on_processes(2, words(*task, "name=two")[1:], "finetune")
    assert "seed 0: 7 steps of 8, rate 0.001, resumed at step 2" in printed
    assert printed.count("custom: train: 54 examples") == 1
    one, two = tmp_path / "runs/one", tmp_path / "runs/two"
    for seed in (0, 1):
        mine, theirs = figures(one, seed), figures(two, seed)
        assert len(mine) == len(theirs) == 7 + 3
        for expected, found in zip(mine, theirs, strict=True):
            assert found[2] == pytest.approx(expected[2], rel=0, abs=1e-5)
            assert found[:2] + found[3:] == expected[:2] + expected[3:]
        results = [json.loads((run / CELL / f"seed-{seed}.json").read_text()) for run in (one, two)]
        assert results[0]["confusion"] == results[1]["confusion"]
        assert results[0]["dev"] == pytest.approx(results[1]["dev"], abs=1e-5)
    assert (two / "results.md").read_text() == (one / "results.md").read_text().replace("one", "two")


def settled(own: Path, words, *more: str) -> FinetuneSettings:
    settings = compose("finetune", words("task=custom", f"data.train={own}", *more)[1:])
    assert isinstance(settings, FinetuneSettings)
    return settings


def test_batches_that_processes_cannot_share_are_named_before_anything_is_read(own, words):
    with pytest.raises(
        UserError, match=r"batch_sizes holds 8, which 3 processes cannot .*: write a multiple of 3"
    ):
        begin(settled(own, words), 3)
    with pytest.raises(UserError, match=r"write a multiple of 16 or training.micro_batch_size=null"):
        begin(settled(own, words, "training.micro_batch_size=8"), 2)
    with pytest.raises(UserError, match=r"processes=4 shares the seeds out.* write processes=null"):
        begin(settled(own, words, "processes=4"), 2)


def test_a_seed_has_a_tracker_a_trace_and_the_figures_of_its_speed(own, words, tmp_path):
    task = ["task=custom", f"data.train={own}", "training.log_every=2", "name=told"]
    assert main(words(*task, "tracking=tensorboard", "training.profile_steps=1")) == 0
    folder = tmp_path / "runs/told" / CELL / "seed-0"
    (file,) = (folder / "tensorboard").iterdir()
    assert b"validation/score" in file.read_bytes()
    assert json.loads((folder / "profile/trace.json").read_text())["traceEvents"]
    event = events(folder, "train")[-1]
    assert event["tokens_per_second"] > 0
    assert event["model_flops_per_second"] > 0
    result = json.loads((tmp_path / "runs/told" / CELL / "seed-0.json").read_text())
    assert set(result["dev_at_the_end"]) == set(result["dev"]) >= {"accuracy", "score", "loss"}


def test_steps_that_are_not_finite_are_skipped_and_told_and_in_the_end_refused(
    own, words, tmp_path, monkeypatch, capsys
):
    inner = NystromformerIntermediate.forward
    monkeypatch.setattr(
        NystromformerIntermediate,
        "forward",
        lambda self, x: inner(self, x) * (float("inf") if self.training else 1.0),
    )
    task = [
        "task=custom",
        f"data.train={own}",
        "training.max_skipped_steps=2",
        "training.log_every=1",
        "name=bad",
    ]
    assert main(words(*task)) == 2
    printed = capsys.readouterr()
    assert "seed 0: step 1 skipped, its gradient is not finite: first in " in printed.out
    (line,) = printed.err.splitlines()
    assert "3 steps had a gradient that is not finite, training.max_skipped_steps=2" in line
    assert "custom rate0.001_batch8 seed 0: write lower task.learning_rates" in line
    assert [event["step"] for event in events(tmp_path / "runs/bad" / CELL / "seed-0", "skipped")] == [
        1,
        2,
        3,
    ]


@pytest.mark.slow
def test_compiled_training_pads_to_few_widths_and_learns_the_same(own, words, tmp_path):
    task = ["task=custom", f"data.train={own}", *CALM]
    assert main(words(*task, "name=eager")) == 0
    assert main(words(*task, "name=compiled", "training.compile=true")) == 0
    eager, compiled = (figures(tmp_path / "runs" / name, 0) for name in ("eager", "compiled"))
    for expected, found in zip(eager, compiled, strict=True):
        assert found[2] == pytest.approx(expected[2], abs=1e-3)
