"""Steps that are not finite: skipped on the device, explained, counted, and in the end refused."""

import pytest
import torch
from accelerate import Accelerator

from nystromformer.cli import main
from nystromformer.model.encoder import NystromformerIntermediate
from nystromformer.settings import TrainingSettings
from nystromformer.training import step as steps
from nystromformer.training.guard import Guard
from nystromformer.training.optimizer import build_optimizer, update

from .runs import events

POISON = 3
"""The training step, counted from 1, whose first micro-batch overflows in one layer."""


@pytest.fixture
def poisoned(monkeypatch):
    """Layer 1's feed-forward gives an infinity for the batch of one step, whenever it is computed."""
    from nystromformer.model import NystromformerForPreTraining
    from nystromformer.training.batches import RunBatches

    poison: dict = {"ids": None, "now": False, "every": False}
    init, forward, inner, made = (
        NystromformerIntermediate.__init__,
        NystromformerForPreTraining.forward,
        NystromformerIntermediate.forward,
        RunBatches.training,
    )

    def training(self, *arguments, **options):
        poison["ids"] = self.of_step(POISON - 1)[0]["input_ids"]
        return made(self, *arguments, **options)

    def outer(self, input_ids=None, **rest):
        known = poison["ids"] is not None and torch.equal(input_ids, poison["ids"])
        poison["now"] = known or (poison["every"] and self.training)
        poison["layer"] = self.nystromformer.encoder.layer[1].intermediate
        return forward(self, input_ids, **rest)

    def intermediate(self, hidden_states):
        out = inner(self, hidden_states)
        return out * float("inf") if poison["now"] and self is poison["layer"] else out

    def with_a_parameter_that_has_no_gradient(self, config):
        init(self, config)
        self.spare = torch.nn.Parameter(torch.ones(3))

    monkeypatch.setattr(NystromformerIntermediate, "__init__", with_a_parameter_that_has_no_gradient)
    monkeypatch.setattr(RunBatches, "training", training)
    monkeypatch.setattr(NystromformerForPreTraining, "forward", outer)
    monkeypatch.setattr(NystromformerIntermediate, "forward", intermediate)
    return poison


def test_a_bad_step_is_skipped_and_explained(overrides, tmp_path, capsys, poisoned):
    assert main(["pretrain", *overrides, "training.log_every=4"]) == 0
    run = tmp_path / "runs/smoke"
    (event,) = events(run, "skipped")
    assert event["step"] == POISON
    assert event["layer"] == "nystromformer.encoder.layer.1.intermediate"
    # Every gradient from the overflow to the loss is not finite; this parameter is the last of the model.
    assert event["parameter"] == "cls.seq_relationship.bias"
    assert len(event["examples"]) == 8
    assert len(events(run, "train")) == 3
    assert all(e["loss"] < 10 for e in events(run, "train"))
    printed = capsys.readouterr().out
    assert f"step {POISON} skipped" in printed
    assert "layer.1.intermediate" in printed
    assert "1 steps were skipped" in (run / "report.md").read_text()


def test_too_many_bad_steps_stop_the_run_naming_the_checkpoint(overrides, tmp_path, capsys, poisoned):
    changes = ["training.max_skipped_steps=2", "training.log_every=1", "training.checkpoint_every=2"]
    poisoned["every"] = True
    assert main(["pretrain", *overrides, *changes]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "3 steps had a gradient that is not finite" in message
    assert "checkpoints/step-2" in message
    assert [e["step"] for e in events(tmp_path / "runs/smoke", "skipped")] == [1, 2, 3]


def test_a_model_that_cannot_compute_fails_before_training(overrides, tmp_path, capsys, monkeypatch):
    inner = NystromformerIntermediate.forward
    monkeypatch.setattr(NystromformerIntermediate, "forward", lambda self, x: inner(self, x) * float("nan"))
    assert main(["pretrain", *overrides]) == 2
    assert "before any training, is not finite" in capsys.readouterr().err
    assert not (tmp_path / "runs/smoke/metrics.jsonl").read_text()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_an_update_with_a_bad_gradient_changes_nothing(bad):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 3)
    optimizer = build_optimizer(model, TrainingSettings())

    def step(finite: bool, fill: float) -> None:
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, fill)
        update(optimizer, torch.tensor(finite))

    step(True, 0.5)
    before = [tensor.clone() for tensor in everything(model, optimizer)]
    step(False, bad)
    for mine, theirs in zip(before, everything(model, optimizer), strict=True):
        assert torch.equal(mine, theirs)
    step(True, 0.5)
    assert not torch.equal(before[0], next(model.parameters()))


def everything(model, optimizer) -> list[torch.Tensor]:
    moments = [tensor for state in optimizer.state.values() for tensor in state.values()]
    return [*(parameter.detach() for parameter in model.parameters()), *moments]


def test_the_fault_is_where_the_backward_pass_met_it_first():
    norms = torch.tensor([float("nan"), float("nan"), float("inf"), 1.0])
    assert steps.last_fault(norms, torch.tensor(False)) == 2
    assert steps.last_fault(torch.ones(4), torch.tensor(True)) == -1
    assert steps.last_fault(torch.tensor([1.0, 3e38, 2.0]), torch.tensor(False)) == 1


class Unused(torch.nn.Module):
    """Its first and its last parameter take no part in the loss; each of `names` is a layer that does."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.first = torch.nn.Parameter(torch.ones(2))
        for name in names:
            self.add_module(name, torch.nn.Linear(2, 2, bias=False))
        self.frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
        self.last = torch.nn.Parameter(torch.ones(2))
        self.names = names

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in self.names:
            x = self.get_submodule(name)(x)
        return x.sum()


class NoBatches:
    def of_step(self, step):
        return []

    def keys_of_step(self, step):
        return [(0, step)]


@pytest.mark.parametrize("bad", ["a", "b", "c"])
@pytest.mark.parametrize("wrapped", [False, True], ids=["alone", "as DDP names it"])
def test_the_named_parameter_is_the_one_whose_gradient_it_is(bad, wrapped):
    """Whatever other parameters there are that have none."""
    Accelerator(cpu=True)
    model = Unused(["a", "b", "c"])
    outer = torch.nn.ModuleDict({"module": model}) if wrapped else model
    model(torch.ones(1, 2)).backward()
    model.get_submodule(bad).weight.grad.fill_(float("nan"))
    named = steps.with_gradient(outer)
    assert list(named) == ["a.weight", "b.weight", "c.weight"]
    norms = steps.gradient_norms(list(named.values()))
    fault = steps.GradientFault(steps.last_fault(norms, torch.tensor(False)), list(named))
    guard = Guard(model, NoBatches(), torch.autocast("cpu", enabled=False))
    guard.note(5, fault)
    (found,) = guard.read()
    assert (found.step, found.parameter) == (5, f"{bad}.weight")
