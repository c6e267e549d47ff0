"""Groups of like length and static shapes change how a run computes, not what."""

import pytest

from nystromformer.cli import main

from .runs import losses

CALM = ["training.log_every=1", "training.learning_rate=3e-4", "model.hidden_dropout=0", "training.steps=4"]


def test_static_shapes_and_micro_batches_change_no_loss(overrides, tmp_path):
    variants = {
        "plain": [],
        "static": ["training.static_shapes=true"],
        "whole": ["training.micro_batch_size=8"],
    }
    found = {}
    for name, changes in variants.items():
        assert main(["pretrain", *overrides, *CALM, *changes, f"name={name}"]) == 0
        found[name] = losses(tmp_path / "runs" / name)
    for name in ("static", "whole"):
        for expected, row in zip(found["plain"], found[name], strict=True):
            assert row[:3] == pytest.approx(expected[:3], rel=0, abs=1e-5)


def test_without_groups_the_batches_are_others_and_train_as_well(overrides, tmp_path):
    for groups in (0, 4):
        words = [*overrides, *CALM, f"training.length_groups={groups}", f"name=groups{groups}"]
        assert main(["pretrain", *words]) == 0
    assert losses(tmp_path / "runs/groups0") != losses(tmp_path / "runs/groups4")


def test_impossible_groups_are_named(overrides, capsys):
    assert main(["pretrain", *overrides, "training.length_groups=-1"]) == 2
    assert "training.length_groups=-1 is impossible: write 0 or more" in capsys.readouterr().err
