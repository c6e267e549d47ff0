"""A real training is killed at random moments, and every time goes on as if nothing had been.

A run killed again and again must leave, bit for bit, what one run without a stop leaves. The moments
are drawn at random: half of them between checkpoints, half while one is being written, which is seen
from outside by the hidden folder that is written into.
"""

from __future__ import annotations

import random
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from nystromformer.cli import main
from nystromformer.training.checkpoint import latest_step, saved_steps

from .runs import COMMAND, losses, same_weights, wait_for


@dataclass
class Kills:
    """How often a run was killed, by what it was doing at that moment."""

    writing: int = 0
    """A checkpoint was unfinished: half written, not yet pointed to, or the old ones not yet removed."""
    training: int = 0
    tries: int = 0


def killed_until_done(
    overrides: list[str], folder: Path, *, writing: int, training: int, keep: int, reference: list[tuple]
) -> Kills:
    """Start the run over and over, kill it so many times, then let it finish.

    After each kill: the losses logged so far are the reference's, and the next session goes on from
    the newest checkpoint that was complete, so that at most the step under way is computed again.
    """
    draw, kills = random.Random(0), Kills()
    checkpoints, output = folder / "checkpoints", folder.parent / "printed.txt"
    while kills.writing < writing or kills.training < training:
        kills.tries += 1
        assert kills.tries <= 4 * (writing + training), f"too many misses: {kills}"
        complete = newest(checkpoints)
        # The number of loader processes may change from session to session.
        workers = f"training.loader_workers={kills.tries % 2 * 2}"
        # A file, not a pipe: loader processes that outlive their parent for a moment hold a pipe open.
        with output.open("w") as file:
            process = subprocess.Popen([*COMMAND, *overrides, workers], stdout=file)
        # What a kill left beyond `latest` is there already, so the session must have begun to go on.
        while complete and f"resumed at step {complete}" not in output.read_text():
            assert process.poll() is None, "ended before it went on"
            time.sleep(0.02)
        wait_for(checkpoints / f"step-{complete + 1}", process)
        time.sleep(draw.uniform(0, 0.3))
        if kills.writing < writing:
            while not list(checkpoints.glob(".step-*.tmp")):
                assert process.poll() is None, "ended before it was killed: raise training.steps"
            time.sleep(draw.uniform(0, 0.01))
        process.kill()
        process.wait()
        if is_unfinished(checkpoints, keep):
            kills.writing += 1
        else:
            kills.training += 1
        assert set(losses(folder)) <= set(reference)
        logged = max(step for step, *_ in losses(folder))
        assert newest(checkpoints) >= logged - 1, "a checkpoint that was complete is gone"
    subprocess.run([*COMMAND, *overrides], check=True, stdout=subprocess.DEVNULL)
    return kills


def newest(checkpoints: Path) -> int:
    return latest_step(checkpoints) or 0


def is_unfinished(checkpoints: Path, keep: int) -> bool:
    steps = saved_steps(checkpoints)
    half = any(checkpoints.glob(".step-*.tmp"))
    not_latest = (checkpoints / "latest").read_text() != f"step-{steps[-1]}\n"
    best = checkpoints / "best"
    kept = set(steps[-keep:]) | ({int(best.read_text()[5:])} if best.exists() else set())
    return half or not_latest or set(steps) != kept


def check(
    overrides: list[str], tmp_path: Path, *, writing: int, training: int, steps: int | None = None
) -> Kills:
    changes = [
        *overrides,
        # 60 documents and 8 examples a step: an epoch ends every few steps
        *([f"training.steps={steps}"] if steps else []),
        "training.checkpoint_every=1",
        "training.keep_checkpoints=2",
        "training.log_every=1",
        "training.validate_every=50",
        "training.micro_batch_size=4",  # two micro-batches a step
        "model.hidden_dropout=0.1",
    ]
    assert main(["pretrain", *changes, "name=whole"]) == 0
    whole, killed = tmp_path / "runs/whole", tmp_path / "runs/killed"
    kills = killed_until_done(
        [*changes, "name=killed"],
        killed,
        writing=writing,
        training=training,
        keep=2,
        reference=losses(whole),
    )
    assert losses(killed) == losses(whole)
    assert same_weights(killed, whole)
    print(f"\n{kills.writing} kills while writing a checkpoint, {kills.training} while training")
    return kills


def test_killed_twice(overrides, tmp_path):
    check(overrides, tmp_path, writing=1, training=1, steps=25)


@pytest.mark.nightly
@pytest.mark.timeout(1200)
def test_killed_thirty_times(overrides, tmp_path):
    kills = check(overrides, tmp_path, writing=15, training=15, steps=700)
    assert kills.writing >= 15
    assert kills.training >= 15


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "attention",
    [
        ["model.attention=softmax", "model.conv_kernel_size=null", "model.attention_dropout=0.1"],
        ["model.landmarks=uniform"],
        ["model.attention=performer", "model.performer_features=16"],
    ],
    ids=["dropout on the attention", "landmarks drawn at random", "features drawn at random"],
)
def test_attention_that_draws_random_numbers_is_killed_too(overrides, tmp_path, attention):
    check([*overrides, *attention], tmp_path, writing=2, training=2, steps=100)


KINDS = (
    "steps:4,max_length:32,masking_probability:0.3",
    "tokens:1500,batch_warmup_from:4,batch_warmup_tokens:500,weights:[0.7]",
    "steps:3,global_batch_size:16,learning_rate:0.002,decay:sqrt,decay_steps:2",
    "steps:4,decay:cosine",
)


def phases(times: int, last: int) -> list[str]:
    """So many phases of each kind, a few steps each, and a last one of more steps."""
    listed = [*KINDS] * times + [f"steps:{last}"]
    return [f"training.phases=[{','.join(f'{{{phase}}}' for phase in listed)}]", "training.decay=none"]


def test_phases_are_killed_twice(overrides, tmp_path):
    check([*overrides, *phases(1, 8)], tmp_path, writing=1, training=1)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_phases_are_killed_ten_times_across_their_borders(overrides, tmp_path):
    kills = check([*overrides, *phases(4, 30)], tmp_path, writing=5, training=5)
    assert kills.writing >= 5
    assert kills.training >= 5
