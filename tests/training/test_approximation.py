"""The approximation's error while training: measured on request, written everywhere, and harmless."""

import pytest
import torch
from accelerate import Accelerator

from nystromformer import NystromformerConfig, NystromformerForPreTraining, approximation_error
from nystromformer.cli import main
from nystromformer.training.pretraining import measure_approximation

from .runs import events, losses


def test_a_run_logs_each_layer_and_head_and_trains_as_without(overrides, tmp_path, capsys):
    short = [*overrides, "training.steps=6", "training.validate_every=3", "training.checkpoint_every=3"]
    asked = ["training.approximation_error_every=4", "tracking=tensorboard", "name=asked"]
    assert main(["pretrain", *short, *asked]) == 0
    printed = capsys.readouterr().out
    asked_run = tmp_path / "runs/asked"
    found = events(asked_run, "approximation")
    assert [event["step"] for event in found] == [4, 6]  # and once at the end
    for event in found:
        heads = torch.tensor(event["heads"])
        assert heads.shape == (2, 2)
        assert heads.min() > 0
        assert heads.max() < 2
        assert [event["layer_0"], event["layer_1"]] == pytest.approx(heads.mean(1).tolist())
        assert event["mean"] == pytest.approx(heads.mean().item())
        assert event["rows"] == 8
        assert f"approximation error at step {event['step']}: {event['mean']:.3f}" in printed
    assert (asked_run / "approximation.png").read_bytes().startswith(b"\x89PNG")
    page = (asked_run / "report.md").read_text()
    assert "| step | mean | layer 0 | layer 1 |" in page
    assert f"| 6 | {found[1]['mean']:.4f} |" in page
    (file,) = (asked_run / "tensorboard").iterdir()
    assert b"approximation/layer_1" in file.read_bytes()

    assert main(["pretrain", *short, "name=plain"]) == 0
    assert losses(tmp_path / "runs/plain") == losses(asked_run)
    assert not events(tmp_path / "runs/plain", "approximation")
    assert "## Approximation" not in (tmp_path / "runs/plain/report.md").read_text()


def test_rows_that_are_exact_or_do_not_count_stay_out_of_the_mean():
    torch.manual_seed(0)
    config = NystromformerConfig(
        vocab_size=30,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        num_landmarks=4,
        max_position_embeddings=16,
        initializer_range=0.5,
    )
    model, accelerator = NystromformerForPreTraining(config), Accelerator(cpu=True)
    autocast = torch.autocast("cpu", enabled=False)

    def batch(*lengths: int) -> dict[str, torch.Tensor]:
        mask = (torch.arange(16) < torch.tensor(lengths)[:, None]).long()
        return {"input_ids": torch.randint(1, 30, mask.shape), "attention_mask": mask}

    long, mixed, other = batch(16, 9), batch(4, 12, 1), batch(16)
    event = measure_approximation(
        model, [(long, True), (mixed, True), (other, False)], accelerator, autocast, 3
    ).figures
    assert (event["rows"], event["exact_rows"]) == (5, 2)
    rows = [approximation_error(model, long).error_LBH, approximation_error(model, mixed).error_LBH[:, [1]]]
    torch.testing.assert_close(torch.tensor(event["heads"]), torch.cat(rows, dim=1).mean(1))
    short = measure_approximation(model, [(batch(4, 2), True)], accelerator, autocast, 3).figures
    assert (short["mean"], short["layer_1"], short["heads"], short["exact_rows"]) == (None, None, None, 2)


def test_a_run_whose_rows_are_all_short_says_so(overrides, tmp_path, capsys):
    changes = ["model.num_landmarks=64", "training.steps=2", "training.approximation_error_every=1"]
    assert main(["pretrain", *overrides, *changes]) == 0
    assert "attention is exact in all 8 rows" in capsys.readouterr().out
    assert "Attention is exact in all 8 rows" in (tmp_path / "runs/smoke/report.md").read_text()
    assert not (tmp_path / "runs/smoke/approximation.png").exists()


def test_other_attentions_are_refused(overrides, capsys):
    changes = ["model.attention=performer", "training.approximation_error_every=1"]
    assert main(["pretrain", *overrides, *changes]) == 2
    assert "model.attention=performer approximates nothing by landmarks" in capsys.readouterr().err
