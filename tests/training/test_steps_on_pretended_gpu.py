"""Whole steps on a GPU that is not there: one device throughout, and nothing that waits for it."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from nystromformer import NystromformerForMaskedLM, NystromformerForPreTraining, NystromformerModel
from nystromformer.model import losses
from nystromformer.model.attention import NystromformerSelfAttention
from nystromformer.model.closed_form import with_exact_attention
from nystromformer.settings import TrainingSettings
from nystromformer.training import devices
from nystromformer.training.attention_transfer import HiddenStates, RowsInTurn
from nystromformer.training.graphs import Graphs
from nystromformer.training.guard import Guard
from nystromformer.training.optimizer import build_optimizer
from nystromformer.training.parallel import shard
from nystromformer.training.pretraining import Pretraining
from nystromformer.training.step import train_step
from tests.model.test_trainer import ids
from tests.pretend.gpu import PRETENDED
from tests.pretend.steps import (
    ALONE,
    DEVICE,
    FULL,
    MECHANISMS,
    OPERATORS,
    PADDED,
    by_the_kernels,
    config,
    forked,
    let_kernels,
    on_gpu,
    pretended,
    pretraining_batch,
    recording,
    rows,
)

if PRETENDED:
    from tests.pretend.gpu import OnCpu, OnGpuAlone, PretendGPU, Waited


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
def test_a_step_of_attention_transfer():
    batches = RowsInTurn(iter([{"input_ids": ids(length)[None]} for length in (40, 20)]), 3, 1).of_step(0)
    with PretendGPU() as gpu:
        encoder = NystromformerModel(config(neighbours=4))
        objective = HiddenStates(on_gpu(gpu, with_exact_attention(encoder)).eval())
        on_gpu(gpu, encoder)
        optimizer = build_optimizer(encoder, TrainingSettings())
        autocast = devices.autocast(torch.float32, DEVICE)
        done = train_step(encoder, objective, optimizer, batches, ALONE, autocast, gradient_clipping=1.0)
    assert all(x.device == DEVICE for x in (*done.losses, done.gradient_norm, done.fault.number))


@pretended
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_what_a_graph_records_is_on_the_gpu_alone(monkeypatch, mechanism):
    """A tensor of the CPU's memory is gone, or another, when the record is replayed."""
    monkeypatch.setattr(torch.random, "fork_rng", forked)
    with PretendGPU() as gpu:
        model = on_gpu(gpu, NystromformerForPreTraining(config(**MECHANISMS[mechanism])))
        optimizer = build_optimizer(model, TrainingSettings())
        recorded = []
        graphs = Graphs(list(model.parameters()), DEVICE, recording(recorded))
        batches = [pretraining_batch(PADDED, static=True), pretraining_batch(FULL)]
        for _ in range(2):
            train_step(
                model, Pretraining(model.config), optimizer, batches, ALONE,
                devices.autocast(torch.bfloat16, DEVICE), gradient_clipping=1.0, graphs=graphs,
            )  # fmt: skip
    assert len(recorded) == 2  # with padding and without
    assert all(watched.operations > 100 for watched in recorded)


@pretended
def test_the_loss_in_parts_is_on_the_gpu_alone(monkeypatch):
    """Of logits at all positions, as they are where the model is given labels."""
    monkeypatch.setattr(losses, "TOGETHER", 50 * 128)
    with PretendGPU() as gpu:
        model = on_gpu(gpu, NystromformerForMaskedLM(config()))
        batch = rows(FULL)
        batch["labels"] = batch["input_ids"].where(torch.arange(40) % 7 == 1, -100)
        batch = devices.on_device(batch, DEVICE)
        with OnGpuAlone(), devices.autocast(torch.bfloat16, DEVICE):
            model(**batch).loss.backward()
    assert sum("logsumexp" in name for name in gpu.operations) == 4  # of 160 tokens


@pretended
def test_what_a_graph_cannot_record_is_noticed():
    with PretendGPU(), OnGpuAlone(), pytest.raises(OnCpu):
        torch.ones(3).to(DEVICE, non_blocking=True)


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
