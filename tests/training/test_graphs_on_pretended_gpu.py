"""Compiled models on a GPU that is not there: forward is one graph, of every head and mechanism."""

import pytest
import torch

from nystromformer import NystromformerForPreTraining
from nystromformer.training import devices
from tests.model.test_trainer import HEADS, case
from tests.pretend.steps import (
    DEVICE,
    FULL,
    MECHANISMS,
    OPERATORS,
    PADDED,
    batches_of,
    by_the_kernels,
    config,
    let_kernels,
    pretended,
    pretraining_batch,
)


@pretended
@pytest.mark.parametrize(
    ("mechanism", "real"),
    [*((name, PADDED) for name in MECHANISMS), ("nystrom", FULL)],
    ids=lambda value: value if isinstance(value, str) else "full" if value is FULL else "padded",
)
def test_one_graph(mechanism, real):
    batch = pretraining_batch(real, static=True)
    if real is FULL:
        del batch["attention_mask"]
    assert_one_graph(lambda: NystromformerForPreTraining(config(**MECHANISMS[mechanism])), batch)


@pretended
@pytest.mark.parametrize("neighbours", OPERATORS)
def test_one_graph_by_the_kernels(monkeypatch, neighbours):
    pytest.importorskip("triton")
    let_kernels(monkeypatch)
    assert_one_graph(lambda: by_the_kernels(neighbours), pretraining_batch(PADDED, static=True))


@pretended
def test_one_graph_with_gradient_checkpointing():
    def build():
        model = NystromformerForPreTraining(config())
        model.recompute_layers()
        return model

    assert_one_graph(build, pretraining_batch(PADDED, static=True))


def assert_one_graph(build, batch) -> None:
    """Forward in one graph, and the backward pass after it."""
    from torch._subclasses import FakeTensorMode

    torch._dynamo.reset()  # as many graphs of one function are an error too
    with FakeTensorMode(allow_non_fake_inputs=True):
        with DEVICE:
            model = build().train()
            inputs = {name: torch.empty(x.shape, dtype=x.dtype) for name, x in batch.items()}
        compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="eager")
        with devices.autocast(torch.bfloat16, DEVICE):
            loss = compiled(**inputs).loss
        loss.backward()
    assert loss.device == DEVICE
    assert any(parameter.grad is not None for parameter in model.parameters())


@pretended
@pytest.mark.parametrize("head", HEADS)
def test_every_head_is_one_graph(head):
    assert_one_graph(lambda: case(head)[0], batches_of(head)[0])
