"""Hidden states between the halves of layers in autocast's type, as on a GPU; here on a CPU, told to."""

import copy

import pytest
import torch

from nystromformer import NystromformerConfig, NystromformerForMaskedLM
from nystromformer.model import encoder

ROWS, LENGTH, LAYERS = 4, 64, 6


@pytest.fixture
def halved(monkeypatch):
    monkeypatch.setattr(encoder, "HALVES_STATES", ("cpu",))


def model_of(**changes):
    torch.manual_seed(3)
    config = NystromformerConfig(
        vocab_size=100, hidden_size=64, num_attention_heads=4, num_hidden_layers=LAYERS,
        intermediate_size=128, num_landmarks=8, max_position_embeddings=LENGTH, hidden_dropout_prob=0.0,
        initializer_range=0.1, **changes,
    )  # fmt: skip
    return NystromformerForMaskedLM(config).train()


def batch():
    made = torch.Generator().manual_seed(4)
    ids = torch.randint(5, 100, (ROWS, LENGTH), generator=made)
    mask = torch.ones_like(ids)
    mask[1, 40:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.where(mask == 1, -100)}


def gradients(model, dtype=None):
    """Of all weights, one after the other, and the loss."""
    model = copy.deepcopy(model)
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        loss = model(**batch()).loss
    loss.backward()
    together = torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])
    return loss.detach().double(), together


def test_gradients_are_as_close_to_exact_ones_as_with_float32_states(monkeypatch):
    """Products round their factors in any case: what the sums' rounding adds to that is little."""
    model = model_of(attention="softmax")
    _, exact = gradients(copy.deepcopy(model).double())
    errors = {}
    for devices in ((), ("cpu",)):
        monkeypatch.setattr(encoder, "HALVES_STATES", devices)
        _, found = gradients(model, torch.bfloat16)
        errors[devices] = float((found - exact).norm() / exact.norm())
    assert errors["cpu",] != errors[()]
    assert errors["cpu",] < 1.5 * errors[()]


def test_layers_read_halves(halved):
    read, _ = states_of("cpu")
    assert len(read) == 3 * LAYERS
    assert set(read) == {torch.bfloat16}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, whose autocast has norms in float32")
def test_callers_get_float32_from_a_gpu():
    read, out = states_of("cuda")
    assert set(read) == {torch.bfloat16}
    assert {x.dtype for x in (out.last_hidden_state, *out.hidden_states)} == {torch.float32}


def states_of(device):
    """The types of what layers and the ends of their halves read, and what the encoder gives."""
    model, read = model_of().nystromformer.to(device), []
    for layer in model.encoder.layer:
        layer.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].dtype))
        for half in (layer.attention.output, layer.output):
            half.register_forward_pre_hook(lambda _, inputs: read.append(inputs[1].dtype))
    with torch.autocast(device, dtype=torch.bfloat16):
        return read, model(batch()["input_ids"].to(device), output_hidden_states=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_autocast_nothing_is_rounded(monkeypatch, dtype):
    model = model_of().to(dtype)
    _, expected = gradients(model)
    monkeypatch.setattr(encoder, "HALVES_STATES", ("cpu",))
    _, found = gradients(model)
    assert torch.equal(found, expected)
