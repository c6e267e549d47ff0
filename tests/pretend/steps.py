"""Models, batches and processes of the steps on a GPU that is not there."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from nystromformer import NystromformerConfig, NystromformerForPreTraining
from nystromformer.data.layout import Layout
from nystromformer.model.attention import NystromformerSelfAttention
from tests.model.test_trainer import case
from tests.pretend.gpu import PRETENDED

pretended = pytest.mark.skipif(
    not PRETENDED, reason="runs in a process of its own, see test_pretended_gpu.py"
)
DEVICE = torch.device("cuda", 0)

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


def forked(devices, enabled=True, **others):
    """The state of random numbers is read before a recording, not within: a GPU refuses that."""
    assert not (enabled and others), "a checkpoint's"
    return nullcontext()


def recording(recorded):
    """Stands for CUDA's graphs: a tensor of the CPU's memory is an error in what they record, which is noted
    in the list."""
    from tests.pretend.gpu import OnGpuAlone

    def record(compute):
        compute()  # to warm up: what follows from the sizes alone may be computed here
        with OnGpuAlone() as watched:
            recorded.append(watched)
            shares = compute()
        return lambda: None, shares

    return record


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
    device=DEVICE,
    num_processes=1,
    reduce=lambda x, how: x,
    backward=lambda loss: loss.backward(),
)


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


def batches_of(head: str, real=(12, 7, 4, 12, 3, 9, 12, 1)):
    """Padded and whole batches of what `test_trainer` trains."""
    inputs = case(head)[1]
    padded = torch.arange(12) < torch.tensor(real)[:, None]
    mask = padded[:, None].expand(inputs["input_ids"].shape) if inputs["input_ids"].dim() == 3 else padded
    return [{**inputs, "attention_mask": mask.long()}, inputs]
