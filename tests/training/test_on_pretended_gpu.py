"""Whole steps on a GPU that is not there: one device throughout, and nothing that waits for it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from nystromformer import (
    NystromformerConfig,
    NystromformerForEmbedding,
    NystromformerForMaskedLM,
    NystromformerForPreTraining,
    NystromformerForSequenceClassification,
)
from nystromformer.data.layout import Layout
from nystromformer.model.attention import NystromformerSelfAttention
from nystromformer.settings import TrainingSettings
from nystromformer.tasks.benchmarks import TASKS
from nystromformer.tasks.kinds.choice import ChoiceTask
from nystromformer.tasks.kinds.embed import EmbedTask
from nystromformer.tasks.kinds.rerank import RerankTask
from nystromformer.tasks.task import Encoded
from nystromformer.tasks.training import Finetuning
from nystromformer.training import devices
from nystromformer.training.guard import Guard
from nystromformer.training.optimizer import build_optimizer
from nystromformer.training.parallel import shard
from nystromformer.training.pretraining import Pretraining
from nystromformer.training.step import train_step
from tests.model.test_trainer import HEADS, case, ids
from tests.pretend.gpu import PRETENDED, pytest_on_it, why_not

if PRETENDED:
    from tests.pretend.gpu import DEVICE, PretendGPU, Waited

pretended = pytest.mark.skipif(not PRETENDED, reason="runs in a process of its own, see test_in_a_process")

MECHANISMS = {
    "nystrom": {},
    "nystrom, no convolution": {"conv_kernel_size": None},
    "nystrom, exact neighbours": {"neighbours": 16},
    "nystrom, uniform": {"landmarks": "uniform"},
    "nystrom, kmeans": {"landmarks": "kmeans"},
    "softmax": {"attention": "softmax", "conv_kernel_size": None},
    "linformer": {"attention": "linformer", "conv_kernel_size": None},
    "longformer": {"attention": "longformer", "conv_kernel_size": None},
    "performer": {"attention": "performer", "conv_kernel_size": None},
}
PADDED = [40, 21, 8, 40]
"""With 8 landmarks: a row of exactly m tokens is among them."""
FULL = [40, 40, 40, 40]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(PRETENDED, reason="is this process")
@pytest.mark.parametrize("chosen", ["graph", "step and every_head", "not graph and not every_head"])
def test_in_a_process(chosen):
    obstacle = why_not()
    if obstacle:
        pytest.skip(obstacle)
    done = pytest_on_it(__file__, chosen)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "passed" in done.stdout


def config(**changes) -> NystromformerConfig:
    shape = {
        "vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 64, "num_landmarks": 8, "conv_kernel_size": 5, "max_position_embeddings": 64,
        "linformer_projected": 8, "longformer_window": 9, "performer_features": 8, "num_labels": 3,
    }  # fmt: skip
    return NystromformerConfig(**{**shape, **changes})


def rows(real: list[int], length: int = 40):
    ids = torch.randint(5, 128, (len(real), length))
    mask = (torch.arange(length) < torch.tensor(real)[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}


def pretraining_batch(real: list[int], *, static: bool = False):
    batch = rows(real)
    picked = (torch.arange(40) % 7 == 1) & (batch["attention_mask"] == 1)
    batch["labels"] = torch.where(picked, batch["input_ids"], -100)
    batch["sentence_order_label"] = torch.arange(len(real)) % 2
    return Layout(pad_id=0, widths=(48,), slots=(12,))(batch) if static else Layout(pad_id=0)(batch)


def on_gpu(gpu, model):
    """The model there; its own way there waits, before the first step."""
    gpu.watching = False
    model.to(DEVICE).train()
    if hasattr(model, "tie_weights"):
        model.tie_weights()  # a fake tensor there is another than the one here, for each name
    gpu.watching = True
    assert all(x.device == DEVICE for x in (*model.parameters(), *model.buffers()))
    return model


ALONE = SimpleNamespace(
    device=torch.device("cuda", 0),
    num_processes=1,
    reduce=lambda x, how: x,
    backward=lambda loss: loss.backward(),
)


@pretended
@pytest.mark.parametrize("precision", ["bf16", "float32"])
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_step_of_pretraining(mechanism, precision):
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    with PretendGPU() as gpu:
        model = on_gpu(gpu, NystromformerForPreTraining(config(**MECHANISMS[mechanism])))
        optimizer = build_optimizer(model, TrainingSettings())
        assert optimizer.defaults["fused"]
        batches = [pretraining_batch(PADDED), pretraining_batch(FULL), pretraining_batch(PADDED, static=True)]
        for checkpointing in (False, True):
            if checkpointing:
                model.recompute_layers()
            figures = train_step(
                model, Pretraining(model.config), optimizer, batches, ALONE, devices.autocast(dtype, DEVICE),
                gradient_clipping=1.0,
            )  # fmt: skip
            for figure in (*figures.losses, figures.gradient_norm, figures.fault.number, figures.taken):
                assert figure.device == DEVICE
    products = [name for name in gpu.operations if "scaled_dot_product" in name or "aten.mm" in name]
    assert products
    assert any("_fused_adamw_" in name for name in gpu.operations)


def by_the_kernels(neighbours=None):
    model = NystromformerForPreTraining(config(neighbours=neighbours))
    for layer in model.modules():
        if isinstance(layer, NystromformerSelfAttention):
            layer.attend.implementation = "operator"
    return model


def let_kernels(monkeypatch):
    for obstacle in ("why_not_on_gpu", "why_not_neighbours_on_gpu"):
        monkeypatch.setattr(f"nystromformer.attention.nystrom.{obstacle}", lambda *_: None)


OPERATORS = {
    None: {"nystrom_attention_gpu"},
    16: {"near_and_far_gpu", "segment_means_gpu", "inverse_gpu", "convolution_gpu"},
}
"""By neighbours."""


@pretended
@pytest.mark.parametrize("neighbours", OPERATORS)
def test_a_step_by_the_kernels(monkeypatch, neighbours):
    """By what the Triton operators say of their results' shapes, types and devices: none is launched."""
    pytest.importorskip("triton")
    let_kernels(monkeypatch)
    with PretendGPU() as gpu:
        model = on_gpu(gpu, by_the_kernels(neighbours))
        optimizer = build_optimizer(model, TrainingSettings())
        for dtype in (torch.bfloat16, torch.float32):
            train_step(
                model, Pretraining(model.config), optimizer,
                [pretraining_batch(PADDED), pretraining_batch(FULL)], ALONE,
                devices.autocast(dtype, DEVICE), gradient_clipping=1.0,
            )  # fmt: skip
    for operator in OPERATORS[neighbours]:
        taken = [name for name in gpu.operations if f"nystromformer.{operator}" in name]
        assert len(taken) == 2 * 2 * 2  # types, batches, directions


@pytest.fixture
def two_processes():
    """This one and another that is not there either: exchanges give what this one has."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield SimpleNamespace(**{**vars(ALONE), "num_processes": 2})
    torch.distributed.destroy_process_group()


@pretended
@pytest.mark.parametrize(
    ("mechanism", "checkpointing"),
    [("nystrom", False), ("nystrom", True), ("softmax", True), ("performer", False)],
)
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_step_of_one_of_two_processes(parallel, mechanism, checkpointing, two_processes):
    exchanged = []

    def exchange(state, bucket):
        exchanged.append(bucket.buffer().device)
        done = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    with PretendGPU() as gpu:
        model = on_gpu(gpu, NystromformerForPreTraining(config(**MECHANISMS[mechanism])))
        if checkpointing:
            model.recompute_layers()
        if parallel == "fsdp":
            shard(model, two_processes)
            wrapped = model
        else:  # Accelerate's call but for the weights' first comparison, which reads them
            arguments = devices.DDP.to_kwargs()
            wrapped = DistributedDataParallel(model, device_ids=[0], init_sync=False, **arguments)
            wrapped.register_comm_hook(None, exchange)
        optimizer = build_optimizer(model, TrainingSettings())
        batches = [pretraining_batch(PADDED), pretraining_batch(FULL)]
        done = train_step(
            wrapped, Pretraining(model.config), optimizer, batches,
            two_processes, devices.autocast(torch.bfloat16, DEVICE), gradient_clipping=1.0,
        )  # fmt: skip
    assert all(x.device == DEVICE for x in (*done.losses, done.gradient_norm, done.fault.number))
    if parallel == "fsdp":
        exchanged = [name for name in gpu.operations if "_reduce_scatter_" in name]
        assert len(exchanged) == len(list(model.nystromformer.encoder.layer)) + 1
    assert exchanged  # once, with the second micro-batch
    assert parallel == "fsdp" or exchanged == [DEVICE]


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


class Loss:
    """The objective that is a head's own loss."""

    losses = ("loss",)

    def counts(self, batch):
        return (len(batch["input_ids"]),)

    def means(self, model, batch):
        return (model(**batch).loss,)

    def flops(self, lengths, counts):
        return 0.0


def batches_of(head: str, real=(12, 7, 4, 12, 3, 9, 12, 1)):
    """Padded and whole batches of what `test_trainer` trains."""
    inputs = case(head)[1]
    padded = torch.arange(12) < torch.tensor(real)[:, None]
    mask = padded[:, None].expand(inputs["input_ids"].shape) if inputs["input_ids"].dim() == 3 else padded
    return [{**inputs, "attention_mask": mask.long()}, inputs]


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
                model, Loss(), optimizer, batches_of(head), ALONE, devices.autocast(dtype, DEVICE),
                gradient_clipping=1.0,
            )  # fmt: skip
        assert all(x.device == DEVICE for x in (*done.losses, done.gradient_norm, done.fault.number))


def tuned(task, model, batches):
    """A step of fine-tuning."""
    with PretendGPU() as gpu:
        on_gpu(gpu, model)
        optimizer = build_optimizer(model, TrainingSettings())
        autocast = devices.autocast(torch.bfloat16, DEVICE)
        objective = Finetuning(task, model.config)
        done = train_step(model, objective, optimizer, batches, ALONE, autocast, gradient_clipping=1.0)
    assert all(x.device == DEVICE for x in (*done.losses, done.gradient_norm, done.fault.number))


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


@pretended
@pytest.mark.parametrize("head", HEADS)
def test_every_head_is_one_graph(head):
    assert_one_graph(lambda: case(head)[0], batches_of(head)[0])


@pretended
def test_a_full_batch_takes_fewer_operations():
    counts = {}
    for name, real in (("padded", PADDED), ("full", FULL)):
        with PretendGPU() as gpu:
            model = on_gpu(gpu, NystromformerForPreTraining(config()))
            batch = devices.on_device(pretraining_batch(real), DEVICE)
            model(**batch)
        counts[name] = len(gpu.operations)
    assert counts["full"] < 0.8 * counts["padded"]


@pretended
def test_hidden_states_are_converted_once_for_queries_keys_and_values():
    with PretendGPU() as gpu:
        layer = on_gpu(gpu, NystromformerSelfAttention(config(attention="softmax", conv_kernel_size=None)))
        hidden = torch.randn(2, 40, 32, device=DEVICE)
        with devices.autocast(torch.bfloat16, DEVICE):
            layer(hidden, None, None)
    assert sum(name == "aten._to_copy.default (2, 40, 32)" for name in gpu.operations) == 1


@pretended
def test_inference_and_a_fault_are_told_of_where_the_model_is():
    with PretendGPU() as gpu, torch.no_grad():
        model = on_gpu(gpu, NystromformerForMaskedLM(config())).eval()
        logits = model(**devices.on_device(rows(PADDED), DEVICE)).logits
        assert (logits.shape, logits.device) == ((4, 40, 128), DEVICE)
        guard = Guard(model, SimpleNamespace(), devices.autocast(torch.float32, DEVICE))
        guard.note(1, torch.full((), -1, device=DEVICE))


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
@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: bool((x > 0).any()),
        lambda x: x + torch.ones(3).to(DEVICE),
    ],
    ids=["item", "boolean index", "nonzero", "tolist", "cpu", "if", "to"],
)
def test_what_waits_is_noticed(wait):
    from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

    with PretendGPU():
        x = torch.ones(3, device=DEVICE)
        with pytest.raises((Waited, DataDependentOutputException, DynamicOutputShapeException)):
            wait(x)


@pretended
def test_two_devices_are_noticed():
    with PretendGPU(), pytest.raises(Exception, match="device"):
        torch.ones(3, device=DEVICE) + torch.ones(3)
