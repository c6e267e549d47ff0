"""What is traced or exported on one batch is right for every other: other lengths, other padding."""

import contextlib
import importlib.util

import pytest
import torch
from torch import Tensor, nn

from nystromformer import NystromformerConfig, NystromformerForMaskedLM, NystromformerModel

M = 8
OTHERS = [
    (2, 40, True),
    (3, 70, True),
    (2, 20, False),
    (2, M + 1, True),
    (2, M, True),
    (1, 2, False),
    (1, 25, True),
]
"""Rows, tokens, and whether there is padding."""
RECORDABLE = {
    "paper": {},
    "exact inverse": {"pinv_iterations": None},
    "kmeans": {"landmarks": "kmeans"},
    "uniform": {"landmarks": "uniform"},
    "neighbours by their operator": {"neighbours": 16, "num_landmarks": 16},
    "neighbours": {"neighbours": 12},
    "neighbours, few": {"neighbours": 3, "salient_tokens": 9},
    "softmax": {"attention": "softmax"},
    "linformer": {"attention": "linformer"},
    "performer": {"attention": "performer"},
}


class LastState(nn.Module):
    def __init__(self, model: NystromformerModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.model(ids, attention_mask=mask).last_hidden_state


def build(**changes) -> LastState:
    torch.manual_seed(0)
    return LastState(NystromformerModel(config(**changes))).eval()


def config(**changes) -> NystromformerConfig:
    return NystromformerConfig(
        **{
            "vocab_size": 101,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "num_landmarks": M,
            "conv_kernel_size": 5,
            "max_position_embeddings": 70,
            "initializer_range": 0.2,
            **changes,
        }
    )


def batch(rows: int, length: int, padding: bool) -> tuple[Tensor, Tensor]:
    ids = torch.randint(5, 101, (rows, length))
    real = torch.arange(rows)[:, None] * 3 + 1 if padding else torch.zeros(rows, 1)
    return ids, (torch.arange(length) < (length - real).clamp(min=1)).long()


@torch.no_grad()
def check(recorded, model: LastState, atol: float = 1e-4) -> None:
    for shape in OTHERS:
        ids, mask = batch(*shape)
        real = mask.bool()
        torch.testing.assert_close(recorded(ids, mask)[real], model(ids, mask)[real], atol=atol, rtol=0)


@contextlib.contextmanager
def composed(monkeypatch):
    """As on a device without an operator of its own."""
    with monkeypatch.context() as patch:
        patch.setattr("nystromformer.attention.nystrom.DEFAULT_IMPLEMENTATION", "composed")
        yield


def dynamic_shapes():
    rows, tokens = torch.export.Dim("rows", min=1, max=64), torch.export.Dim("tokens", min=2, max=70)
    return ({0: rows, 1: tokens}, {0: rows, 1: tokens})


@pytest.mark.parametrize("length", [40, 6])
@pytest.mark.parametrize("changes", RECORDABLE.values(), ids=RECORDABLE)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*deprecated")
def test_a_trace_of_a_batch_without_padding_serves_every_batch(changes, length):
    model = build(**changes)
    if changes.get("pinv_iterations", 6) is None:
        model.double()  # the exact inverse of nearly singular matrices
    with torch.no_grad():
        traced = torch.jit.trace(model, batch(2, length, padding=False))
    check(traced, model)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*deprecated")
def test_so_does_a_trace_of_the_composed_operators(monkeypatch):
    model = build()
    with composed(monkeypatch), torch.no_grad():
        traced = torch.jit.trace(model, batch(2, 40, padding=False))
    check(traced, model)


@pytest.mark.parametrize("changes", [RECORDABLE["paper"], RECORDABLE["softmax"]], ids=["nystrom", "softmax"])
def test_an_export_of_dynamic_length_serves_every_length(changes):
    model = build(**changes)
    exported = torch.export.export(model, batch(2, 40, padding=False), dynamic_shapes=dynamic_shapes())
    check(exported.module(), model)


@pytest.mark.parametrize("changes", [{}, {"neighbours": 12}], ids=["landmarks", "neighbours"])
def test_so_does_an_export_of_the_composed_operators(changes, monkeypatch):
    model = build(**changes)
    anything = dict.fromkeys((0, 1), torch.export.Dim.DYNAMIC)
    with composed(monkeypatch), torch.no_grad():
        exported = torch.export.export(
            model, batch(2, 40, padding=False), dynamic_shapes=(anything, anything)
        )
    check(exported.module(), model)


def test_what_cannot_follow_the_length_is_refused_in_words():
    with pytest.raises(ValueError, match="longformer attention cannot be exported with a dynamic length"):
        torch.export.export(
            build(attention="longformer"), batch(2, 40, padding=False), dynamic_shapes=dynamic_shapes()
        )


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="exporting to ONNX needs the packages onnx, onnxscript and onnxruntime",
)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [True, False], ids=["by export", "by trace"])
def test_onnx_computes_the_same_with_every_padding_and_length(dynamo, tmp_path):
    import onnxruntime

    model, path = build(), tmp_path / "model.onnx"
    axes = {0: "rows", 1: "tokens"}
    how = (
        {"dynamic_shapes": dynamic_shapes()}
        if dynamo
        else {"dynamic_axes": {"ids": axes, "mask": axes, "out": axes}, "opset_version": 17}
    )
    torch.onnx.export(
        model,
        batch(2, 40, padding=False),
        path,
        dynamo=dynamo,
        input_names=["ids", "mask"],
        output_names=["out"],
        **how,
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(ids: Tensor, mask: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"ids": ids.numpy(), "mask": mask.numpy()})[0])

    check(run, model)


@pytest.mark.filterwarnings("ignore")
def test_quantize_dynamic_finds_every_linear_layer():
    torch.manual_seed(0)
    model = NystromformerForMaskedLM(config()).eval()
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    assert len(linears) == 2 * 6 + 2
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    for name in linears:
        assert "quantized" in type(quantized.get_submodule(name)).__module__, name
    ids, mask = batch(2, 40, padding=True)
    with torch.no_grad():
        expected, found = (x(ids, attention_mask=mask).logits[mask.bool()] for x in (model, quantized))
    assert 0 < (found - expected).norm() / expected.norm() < 0.2
