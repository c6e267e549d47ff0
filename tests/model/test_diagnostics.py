"""The error of a model's attention, beside a dense computation in float64."""

import math

import pytest
import torch
from transformers import BertConfig, BertModel

from nystromformer import NystromformerConfig, NystromformerForPreTraining, approximation_error

LENGTHS = [40, 8, 23, 0]
M, D = 8, 16


def build(**changes) -> NystromformerForPreTraining:
    torch.manual_seed(0)
    config = NystromformerConfig(
        vocab_size=50,
        hidden_size=2 * D,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        num_landmarks=M,
        initializer_range=0.5,  # attention far from uniform
        max_position_embeddings=40,
        **changes,
    )
    return NystromformerForPreTraining(config).double()


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = (torch.arange(40) < torch.tensor(LENGTHS)[:, None]).long()
    return {"input_ids": torch.randint(1, 50, mask.shape, generator=generator), "attention_mask": mask}


def dense_error(query_nD: torch.Tensor, key_nD: torch.Tensor) -> float:
    """The definition, for one row's one head: segment means, exact softmaxes, six iterations."""
    scale = query_nD.shape[1] ** -0.5
    exact_nn = torch.softmax(query_nD @ key_nD.T * scale, dim=1)
    query_MD, key_MD = (torch.stack([part.mean(0) for part in x.tensor_split(M)]) for x in (query_nD, key_nD))
    kernel = torch.softmax(query_MD @ key_MD.T * scale, dim=1)
    z = kernel.T / (kernel.sum(0).max() * kernel.sum(1).max())
    eye = torch.eye(M, dtype=torch.float64)
    for _ in range(6):
        product = kernel @ z
        z = z @ (13 * eye - product @ (15 * eye - product @ (7 * eye - product))) / 4
    f = torch.softmax(query_nD @ key_MD.T * scale, dim=1)
    b = torch.softmax(query_MD @ key_nD.T * scale, dim=1)
    return float((exact_nn - f @ z @ b).norm() / exact_nn.norm())


@torch.no_grad()
def test_equals_the_dense_computation_of_every_layer_row_and_head():
    model = build().eval()
    found = approximation_error(model, batch())
    assert found.error_LBH.shape == (3, 4, 2)
    assert found.exact_LB.tolist() == [[False, True, False, True]] * 3
    states = model.nystromformer(**batch(), output_hidden_states=True).hidden_states
    for number, layer in enumerate(model.nystromformer.encoder.layer):
        for row, length in enumerate(LENGTHS):
            query, key = (
                getattr(layer.attention.self, name)(states[number][row, :length]).view(length, 2, D)
                for name in ("query", "key")
            )
            for head in range(2):
                error = found.error_LBH[number, row, head].item()
                if length > M:
                    assert error == pytest.approx(dense_error(query[:, head], key[:, head]), rel=1e-6)
                    assert error > 0.01
                else:
                    assert error < 1e-12
    rows = [0, 2]  # those that are approximated
    torch.testing.assert_close(found.mean_LH, found.error_LBH[:, rows].mean(1))


def test_the_model_is_left_as_it_was_and_dropout_is_off():
    model = build(hidden_dropout_prob=0.5)
    model.train()
    before = torch.get_rng_state()
    one, other = (approximation_error(model, batch()).error_LBH for _ in range(2))
    assert torch.equal(one, other)
    assert model.training
    assert torch.equal(before, torch.get_rng_state())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_compiled_models_are_looked_into_too():
    model = build()
    expected = approximation_error(model, batch()).error_LBH
    model.compile(backend="eager")
    assert torch.equal(approximation_error(model, batch()).error_LBH, expected)


def test_exact_attention_has_no_error():
    found = approximation_error(build(attention="softmax"), batch())
    assert not found.error_LBH.any()
    assert found.exact_LB.all()
    assert all(math.isnan(mean) for mean in found.mean_LH.flatten().tolist())


def test_other_models_are_refused():
    with pytest.raises(ValueError, match="performer attention has no landmarks"):
        approximation_error(build(attention="performer"), batch())
    bert = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=60))
    with pytest.raises(ValueError, match="BertModel has no layer"):
        approximation_error(bert, batch())
