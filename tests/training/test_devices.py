"""The devices: nothing but the settings decides what is computed; full batches need no mask."""

import dataclasses
import os
import subprocess
import sys

import pytest
import torch
from torch._subclasses import FakeTensorMode

from nystromformer import NystromformerConfig, NystromformerForPreTraining
from nystromformer.attention import nystrom
from nystromformer.attention.gpu import support
from nystromformer.attention.options import NystromOptions
from nystromformer.data.layout import Layout
from nystromformer.errors import UserError
from nystromformer.settings import TrainingSettings
from nystromformer.training import devices
from nystromformer.training.optimizer import build_optimizer
from nystromformer.training.pretraining import Pretraining, validate
from nystromformer.training.step import train_step

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

LEAKS = {
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
    "ACCELERATE_DYNAMO_BACKEND": "EAGER",
    "ACCELERATE_DYNAMO_MODE": "default",
    "ACCELERATE_DYNAMO_USE_FULLGRAPH": "true",
    "ACCELERATE_DYNAMO_USE_DYNAMIC": "true",
}
"""What `accelerate launch` sets from its flags, or from the file of `accelerate config`."""


def first_step(accelerator):
    """What a linear layer returns and learns under an Accelerator."""
    layer = torch.nn.Linear(2, 2)
    torch.nn.init.ones_(layer.weight)
    prepared = accelerator.prepare_model(layer)
    assert not hasattr(prepared, "_orig_mod")
    out = prepared(torch.ones(1, 2, device=accelerator.device))
    accelerator.backward(out.sum())
    return out.dtype, layer.weight.grad


def test_accelerates_environment_changes_nothing(monkeypatch):
    for name, value in LEAKS.items():
        monkeypatch.setenv(name, value)
    accelerator = devices.open_accelerator(TrainingSettings())
    dtype, gradient = first_step(accelerator)
    assert dtype == torch.float32
    assert torch.equal(gradient.cpu(), torch.ones(2, 2))


def test_an_accelerator_opened_before_changes_nothing_but_its_precision(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    from accelerate import Accelerator

    Accelerator(cpu=True)
    _, gradient = first_step(devices.accelerator_of(cpu=True))
    assert torch.equal(gradient.cpu(), torch.ones(2, 2))


@pytest.mark.parametrize(
    "variable",
    [
        "ACCELERATE_USE_FSDP",
        "ACCELERATE_USE_DEEPSPEED",
        "ACCELERATE_USE_MEGATRON_LM",
        "ACCELERATE_USE_PARALLELISM_CONFIG",
    ],
)
def test_what_shares_out_the_model_is_refused(monkeypatch, variable):
    monkeypatch.setenv(variable, "true")
    with pytest.raises(UserError, match=variable):
        devices.accelerator_of(cpu=True)


def test_gpus_that_nccl_must_be_told_of_end_in_a_line(monkeypatch):
    """Accelerate's own words for several GPUs of the kind, started by torchrun."""

    def refuse(**_):
        raise NotImplementedError("Using RTX 4000 series doesn't support faster communication broadband")

    monkeypatch.setattr(devices, "Accelerator", refuse)
    with pytest.raises(UserError, match=r"NCCL_P2P_DISABLE=1 and NCCL_IB_DISABLE=1.*RTX 4000") as caught:
        devices.accelerator_of()
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_accelerates_own_configuration_file_changes_nothing(tmp_path):
    """The one of `accelerate config`, which `accelerate launch` reads where none is named."""
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "accelerate/default_config.yaml").write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nmixed_precision: bf16\nuse_cpu: true\n"
        "num_machines: 1\nnum_processes: 1\nmachine_rank: 0\n"
        "dynamo_config:\n  dynamo_backend: EAGER\n  dynamo_mode: default\n"
    )
    program = tmp_path / "program.py"
    program.write_text(
        "import os, torch\n"
        "assert os.environ['ACCELERATE_MIXED_PRECISION'] == 'bf16'\n"
        "from tests.training.test_devices import devices, first_step, TrainingSettings\n"
        "dtype, gradient = first_step(devices.open_accelerator(TrainingSettings()))\n"
        "assert dtype == torch.float32 and torch.equal(gradient, torch.ones(2, 2)), (dtype, gradient)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", program],
        env={**os.environ, "HF_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


# --- full batches -------------------------------------------------------------------------------------


def config() -> NystromformerConfig:
    return NystromformerConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        num_landmarks=4, max_position_embeddings=32, hidden_dropout_prob=0.0,
    )  # fmt: skip


def batch_of(real: list[int], length: int = 16):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 64, (len(real), length), generator=generator)
    mask = (torch.arange(length) < torch.tensor(real)[:, None]).long()
    labels = torch.where((torch.arange(length) % 5 == 1) & (mask == 1), ids, -100)
    return Layout(pad_id=0)(
        {
            "input_ids": ids,
            "attention_mask": mask,
            "token_type_ids": torch.zeros_like(ids),
            "labels": labels,
            "sentence_order_label": torch.arange(len(real)) % 2,
        }
    )


@pytest.fixture
def seen():
    """A model, and the names of what each of its calls was given."""
    torch.manual_seed(0)
    model = NystromformerForPreTraining(config())
    calls = []
    model.register_forward_pre_hook(lambda _, args, named: calls.append(set(named)), with_kwargs=True)
    return model, calls


def test_full_batches_are_computed_without_a_mask(seen):
    model, calls = seen
    accelerator, autocast = devices.accelerator_of(cpu=True), torch.autocast("cpu", enabled=False)
    micro_batches = [batch_of([16, 16]), batch_of([16, 9])]
    optimizer = build_optimizer(model, TrainingSettings())
    figures = train_step(
        model, Pretraining(model.config), optimizer, micro_batches, accelerator, autocast,
        gradient_clipping=None,
    )  # fmt: skip
    assert ["attention_mask" in names for names in calls] == [False, True]
    assert (figures.tokens, figures.positions) == (57, 64)
    calls.clear()
    validate(model, [(batch, True) for batch in micro_batches], torch.zeros(64), accelerator, autocast)
    assert ["attention_mask" in names for names in calls] == [False, True]


def test_a_batch_that_is_on_the_device_already_is_not_waited_for():
    """A mask there may hold anything: to look would wait."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        device = torch.device("cuda:0")
        mask = torch.ones(2, 3, dtype=torch.int64, device=device)
        assert set(devices.on_device({"attention_mask": mask}, device)) == {"attention_mask"}


# --- what a run says of its attention -----------------------------------------------------------------


def described(monkeypatch, device: str, capability=(9, 0), **choice) -> str:
    monkeypatch.setattr(support, "_capability", lambda index: capability)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(nystrom, "DEFAULT_IMPLEMENTATION", choice.pop("default", "auto"))
    monkeypatch.setattr(support, "HAS_TRITON", True)
    with FakeTensorMode():
        query = torch.empty(1, 2, 512, 64, dtype=torch.bfloat16, device=device)
        way = choice.pop("implementation", None)
        return nystrom.computed_by(query, NystromOptions(**choice), way, reason=True)


def test_the_way_that_attention_takes_is_told(monkeypatch):
    composed = "composed of PyTorch's operators"
    assert described(monkeypatch, "cuda").startswith("Triton 3")
    assert described(monkeypatch, "cuda", default="composed") == composed
    assert described(monkeypatch, "cuda", default="composed", implementation="operator").startswith(
        "Triton 3"
    )
    assert described(monkeypatch, "cuda", pinv_iterations=None).startswith(f"{composed}: ")
    assert "shared memory" in described(monkeypatch, "cuda", (7, 5))
    assert "exact" in described(monkeypatch, "cuda", num_landmarks=512)
    assert described(monkeypatch, "cpu").startswith(("compiled kernel", f"{composed}: its kernel takes"))
    assert described(monkeypatch, "cpu", num_landmarks=7).startswith(f"{composed}: its kernel takes")


def test_micro_batches_that_are_not_written_fit_into_a_gpu(overrides):
    """base_4096 would otherwise take 32 rows of 4,096 at once."""
    from nystromformer.settings.compose import compose
    from nystromformer.training.batches import MOST_TOKENS, RunBatches
    from nystromformer.training.phases import plan_of

    for name in ("base_512", "base_1024", "base_2048", "base_4096"):
        settings = compose("pretrain", [f"experiment={name}"])
        for processes in (1, 2, 8, 64):
            batches = RunBatches.__new__(RunBatches)
            batches._settings, batches._world_size = settings.training, processes
            (stretch,) = plan_of(settings.training, max_length=settings.model.max_length).stretches
            share = settings.training.global_batch_size // processes
            rows, length = batches.micro_batch_size(stretch), settings.model.max_length
            assert share % rows == 0
            assert rows * length <= MOST_TOKENS
            assert rows == min(share, 64 if name == "base_512" else 32, MOST_TOKENS // length)
    written = dataclasses.replace(settings.training, micro_batch_size=32)
    assert not list(written.complaints_on(1))
