"""Passes that are recorded and replayed train as those that are computed one by one.

On a CPU something stands for CUDA's graphs: it computes the recorded pass again, on the tensors that the
recording holds, when it is replayed. On a GPU they are CUDA's.
"""

import copy

import pytest
import torch

from nystromformer import NystromformerForPreTraining
from nystromformer.model.encoder import POSITION_OFFSET
from nystromformer.settings import TrainingSettings
from nystromformer.training import devices, graphs
from nystromformer.training.graphs import Graphs
from nystromformer.training.optimizer import build_optimizer
from nystromformer.training.pretraining import Pretraining
from nystromformer.training.step import train_step

from ..model.test_trainer import HEADS, OwnLoss, case
from .test_devices import batch_of, config

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CPU = torch.device("cpu")


class StandIn:
    """Records what a CUDA graph does: the pass, the tensors that it reads, and the one of its result."""

    def __init__(self):
        self.recordings = 0

    def __call__(self, compute):
        self.recordings += 1
        for _ in range(graphs.WARM_UPS):
            compute()
        shares = torch.empty_like(compute())
        return lambda: shares.copy_(compute()), shares


STEPS = [
    [batch_of([16, 16]), batch_of([16, 9])],
    [batch_of([7, 9]), batch_of([3, 16])],
    [batch_of([16, 16, 16]), batch_of([12, 12], length=12), batch_of([16, 16])],
    [batch_of([16, 1])],
]
"""Without a mask and with one; of several numbers of rows and lengths."""


def trained(
    use_graphs,
    device=CPU,
    dtype=torch.float32,
    recorder=None,
    steps=STEPS,
    changes=None,
    state=None,
    rate=1e-2,
):
    """The weights, figures and random numbers after the steps."""
    torch.manual_seed(5)
    made = config()
    made.hidden_dropout_prob = 0.1
    for name, value in (changes or {}).items():
        setattr(made, name, value)
    model = NystromformerForPreTraining(made).to(device).train()
    optimizer = build_optimizer(model, TrainingSettings(learning_rate=rate))
    if state is not None:
        model.load_state_dict(state[0])
        optimizer.load_state_dict(state[1])
        torch.set_rng_state(state[2])
    recordings = Graphs(list(model.parameters()), device, recorder) if use_graphs else None
    accelerator, found = devices.accelerator_of(cpu=device.type == "cpu"), []
    for micro_batches in steps:
        done = train_step(
            model, Pretraining(made), optimizer, micro_batches, accelerator,
            devices.autocast(dtype, device), gradient_clipping=1.0, graphs=recordings,
        )  # fmt: skip
        found.append(torch.stack([*done.losses, done.gradient_norm, done.taken]))
    state = copy.deepcopy((model.state_dict(), optimizer.state_dict(), torch.get_rng_state()))
    return state, torch.stack(found) if found else None


def equal(found, expected):
    weights, moments, numbers = zip(found, expected, strict=True)
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
    assert all(
        torch.equal(x, moments[1]["state"][key][name])
        for key, state in moments[0]["state"].items()
        for name, x in state.items()
    )
    assert torch.equal(*numbers)


def test_replayed_steps_are_the_computed_ones():
    """Bit for bit, with dropout; of several micro-batches a step, of which later ones are recorded while
    gradients of earlier ones wait, and of shapes that come again."""
    recorder = StandIn()
    expected, figures = trained(False)
    found, replayed = trained(True, recorder=recorder)
    equal(found, expected)
    assert torch.equal(replayed, figures)
    shapes = {
        tuple((name, x.shape) for name, x in sorted(devices.on_device(batch, CPU).items()))
        for micro_batches in STEPS
        for batch in micro_batches
    }
    assert recorder.recordings == len(shapes)
    assert len(shapes) < sum(map(len, STEPS))


def test_a_run_that_records_anew_goes_on_the_same():
    """Random numbers and gradients do not tell of a recording."""
    expected, _ = trained(True, recorder=StandIn())
    halfway, _ = trained(True, recorder=StandIn(), steps=STEPS[:2])
    found, _ = trained(True, recorder=StandIn(), steps=STEPS[2:], state=halfway)
    equal(found, expected)


def test_a_step_that_is_not_finite_changes_nothing_and_the_next_one_counts():
    def broken(use_graphs):
        state, _ = trained(False, steps=STEPS[:1])
        positions = state[0]["nystromformer.embeddings.position_embeddings.weight"]
        positions[POSITION_OFFSET + 15, 0] = float("inf")  # of the longer rows
        return trained(use_graphs, recorder=StandIn(), steps=[*STEPS[1:], STEPS[2][1:2]], state=state)

    expected, figures = broken(False)
    found, replayed = broken(True)
    taken = figures[:, -1]
    assert taken.tolist() == [0, 0, 0, 1]
    equal(found, expected)
    assert torch.equal(replayed[:, -1], taken)


@pytest.mark.parametrize("head", HEADS)
def test_replayed_steps_of_every_head_are_the_computed_ones(head):
    """Of a whole batch and of a part of it, in turn."""

    def steps(recorder):
        torch.manual_seed(7)
        model, batch = case(head, hidden_dropout_prob=0.1)
        optimizer = build_optimizer(model.train(), TrainingSettings(learning_rate=1e-2))
        recordings = Graphs(list(model.parameters()), CPU, recorder) if recorder else None
        accelerator = devices.accelerator_of(cpu=True)
        parts = [{name: x[some] for name, x in batch.items()} for some in (slice(None), slice(0, 3))]
        for _ in range(3):
            figures = train_step(
                model, OwnLoss(), optimizer, parts, accelerator, devices.autocast(torch.float32, CPU),
                gradient_clipping=1.0, graphs=recordings,
            )  # fmt: skip
        return [*figures.losses, figures.gradient_norm, *model.parameters()]

    recorder = StandIn()
    for found, expected in zip(steps(recorder), steps(None), strict=True):
        assert torch.equal(found, expected)
    assert recorder.recordings == 2


@gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "changes", [{}, {"neighbours": 4}, {"attention": "softmax"}], ids=["nystrom", "neighbours", "softmax"]
)
def test_cudas_graphs_train_as_the_kernels_one_by_one(dtype, changes):
    """Without dropout, whose numbers a graph may draw in another order."""
    device, changes = torch.device("cuda", 0), {**changes, "hidden_dropout_prob": 0.0}
    (start, *_), _ = trained(False, device, dtype, steps=[], changes=changes)
    (expected, *_), figures = trained(False, device, dtype, changes=changes)
    (found, *_), replayed = trained(True, device, dtype, changes=changes)
    torch.testing.assert_close(replayed, figures, rtol=2e-2, atol=0)
    moved = sum((expected[name] - x).float().square().sum() for name, x in start.items())
    apart = sum((expected[name] - x).float().square().sum() for name, x in found.items())
    assert apart < 0.01 * moved


@gpu
def test_every_replay_draws_dropout_anew():
    """Of one batch again and again, by weights that are as good as the same."""
    _, figures = trained(True, torch.device("cuda", 0), steps=[STEPS[0][:1]] * 4, rate=1e-9)
    assert len(figures[:, 0].unique()) == 4
