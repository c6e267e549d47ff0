"""Steps of fine-tuning on a GPU that is not there, of every head and kind of task."""

import numpy as np
import pytest
import torch

from nystromformer import NystromformerForEmbedding, NystromformerForSequenceClassification
from nystromformer.settings import TrainingSettings
from nystromformer.tasks.benchmarks import TASKS
from nystromformer.tasks.kinds.choice import ChoiceTask
from nystromformer.tasks.kinds.embed import EmbedTask
from nystromformer.tasks.kinds.rerank import RerankTask
from nystromformer.tasks.task import Encoded
from nystromformer.tasks.training import Finetuning
from nystromformer.training import devices
from nystromformer.training.graphs import Graphs
from nystromformer.training.optimizer import build_optimizer
from nystromformer.training.step import train_step
from tests.model.test_trainer import HEADS, OwnLoss, case, ids
from tests.pretend.gpu import PRETENDED
from tests.pretend.steps import (
    ALONE,
    DEVICE,
    FULL,
    MECHANISMS,
    PADDED,
    batches_of,
    config,
    forked,
    on_gpu,
    pretended,
    recording,
    rows,
)

if PRETENDED:
    from tests.pretend.gpu import PretendGPU


@pretended
@pytest.mark.parametrize("mechanism", ["nystrom", "softmax", "longformer"])
def test_a_step_of_finetuning(mechanism):
    with PretendGPU() as gpu:
        for labels, changes in ((torch.tensor([0, 1, 2, 0]), {}), (torch.rand(4), {"num_labels": 1})):
            model = NystromformerForSequenceClassification(config(**MECHANISMS[mechanism], **changes))
            on_gpu(gpu, model)
            optimizer = build_optimizer(model, TrainingSettings())
            batches = [{**rows(real), "labels": labels} for real in (PADDED, FULL)]
            autocast = devices.autocast(torch.bfloat16, DEVICE)
            objective = Finetuning(TASKS["sst2"], model.config)
            done = train_step(model, objective, optimizer, batches, ALONE, autocast, gradient_clipping=1.0)
            assert all(x.device == DEVICE for x in (*done.losses, done.gradient_norm, done.fault.number))


@pretended
@pytest.mark.parametrize("mechanism", ["nystrom", "softmax"])
@pytest.mark.parametrize("head", HEADS)
def test_a_step_of_every_head(head, mechanism):
    for dtype in (torch.bfloat16, torch.float32) if mechanism == "nystrom" else (torch.bfloat16,):
        with PretendGPU() as gpu:
            model = on_gpu(gpu, case(head, **MECHANISMS[mechanism])[0])
            optimizer = build_optimizer(model, TrainingSettings())
            if dtype == torch.float32:
                model.recompute_layers()
            done = train_step(
                model, OwnLoss(), optimizer, batches_of(head), ALONE, devices.autocast(dtype, DEVICE),
                gradient_clipping=1.0,
            )  # fmt: skip
        assert all(x.device == DEVICE for x in (*done.losses, done.gradient_norm, done.fault.number))


@pretended
@pytest.mark.parametrize("head", HEADS)
def test_what_a_graph_records_of_a_head_is_on_the_gpu_alone(monkeypatch, head):
    monkeypatch.setattr(torch.random, "fork_rng", forked)
    recorded = []
    with PretendGPU() as gpu:
        model = on_gpu(gpu, case(head)[0])
        optimizer = build_optimizer(model, TrainingSettings())
        graphs = Graphs(list(model.parameters()), DEVICE, recording(recorded))
        for _ in range(2):
            autocast = devices.autocast(torch.bfloat16, DEVICE)
            train_step(
                model, OwnLoss(), optimizer, batches_of(head), ALONE, autocast,
                gradient_clipping=1.0, graphs=graphs,
            )  # fmt: skip
    assert 1 <= len(recorded) <= 2
    assert all(watched.operations > 50 for watched in recorded)


def tuned(task, model, batches, recorded=None):
    """A step of fine-tuning; what graphs record of it is noted in the list, if there is one."""
    with PretendGPU() as gpu:
        on_gpu(gpu, model)
        optimizer = build_optimizer(model, TrainingSettings())
        graphs = None
        if recorded is not None:
            graphs = Graphs(list(model.parameters()), DEVICE, recording(recorded))
        autocast = devices.autocast(torch.bfloat16, DEVICE)
        objective = Finetuning(task, model.config)
        done = train_step(
            model, objective, optimizer, batches, ALONE, autocast, gradient_clipping=1.0, graphs=graphs
        )
    assert all(x.device == DEVICE for x in (*done.losses, done.gradient_norm, done.fault.number))


@pretended
@pytest.mark.parametrize("kind", ["choice", "listwise", "pointwise", "regression"])
def test_what_a_graph_records_of_choices_is_on_the_gpu_alone(monkeypatch, kind):
    monkeypatch.setattr(torch.random, "fork_rng", forked)
    recorded, more = [], {"choices": torch.arange(8) % 2 + 2}
    if kind == "choice":
        task, head = ChoiceTask("choice", "choices"), "choices"
    else:
        task, head, more["labels"] = RerankTask("rerank", "ranking", goal=kind), "a number", torch.rand(8, 3)
    tuned(task, case(head)[0], [{**batch, **more} for batch in batches_of("choices")], recorded)
    assert recorded
    assert all(watched.operations > 50 for watched in recorded)


@pretended
def test_a_step_of_rows_with_unequal_numbers_of_choices():
    batches = [{**batch, "choices": torch.arange(8) % 2 + 2} for batch in batches_of("choices")]
    tuned(ChoiceTask("choice", "choices"), case("choices")[0], batches)


@pretended
@pytest.mark.parametrize("goal", ["listwise", "pointwise", "regression"])
def test_a_step_of_reranking(goal):
    """Of lists with 2 and 3 documents."""
    more = {"choices": torch.arange(8) % 2 + 2, "labels": torch.rand(8, 3)}
    batches = [{**batch, **more} for batch in batches_of("choices")]
    tuned(RerankTask("rerank", "ranking", goal=goal), case("a number")[0], batches)


@pretended
@pytest.mark.parametrize("at_once", [None, 5], ids=["whole", "in parts"])
@pytest.mark.parametrize("goal", ["contrastive", "vectors", "similarities"])
def test_a_step_of_embedding(goal, at_once):
    lengths = torch.randint(2, 13, (24,)).tolist()
    texts = [ids(length).tolist() for length in lengths]
    given, labels = texts, [torch.randn(16).numpy() for _ in texts]
    if goal == "contrastive":  # anchor, passage and a wrong one
        given, labels = [texts[place : place + 3] for place in range(0, 24, 3)], None
    encoded = Encoded(given, None, labels, *(np.array([len(row) for row in given]),) * 2)
    width = None if goal == "contrastive" else 16
    task = EmbedTask("embed", "embedding", goal=goal, symmetric=True, width=width)
    batch = task.training_batch(encoded, range(len(given)), 0, at_once)
    tuned(task, NystromformerForEmbedding(case("tokens")[0].config), [batch])
