"""The error of a model's attention, beside a dense computation in float64."""

import math
import re
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from nystromformer import (
    NystromformerConfig,
    NystromformerForPreTraining,
    approximation_error,
    attention_factors,
    attention_matrix,
)
from nystromformer.attention.convolution import residual_convolution

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


CHOICES = [{}, {"attention": "softmax"}, {"landmarks": "kmeans"}, {"pinv_iterations": None}]


@torch.no_grad()
@pytest.mark.parametrize("changes", CHOICES, ids=lambda changes: "-".join(map(str, changes.values())))
def test_the_factors_times_the_values_are_what_the_layer_computes(changes):
    model = build(**changes).eval()
    layer = model.nystromformer.encoder.layer[1].attention.self
    seen = []
    with layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output))):
        model(**batch())
    (states, outputs) = seen[0]
    for row, length in enumerate(LENGTHS[:3]):
        f, z, b = attention_factors(model, batch(), layer=1, row=row)
        value = layer.value(states[row : row + 1, :length]).view(1, length, 2, D).transpose(1, 2)
        expected = f @ (z @ (b @ value)) + residual_convolution(value, layer.conv.weight)
        torch.testing.assert_close(
            outputs[row, :length], expected[0].transpose(0, 1).flatten(1), rtol=1e-6, atol=1e-6
        )


@torch.no_grad()
@pytest.mark.parametrize("changes", CHOICES, ids=lambda changes: "-".join(map(str, changes.values())))
def test_the_matrix_is_the_product_and_its_distance_the_error(changes):
    model = build(**changes)
    errors = approximation_error(model, batch()).error_LBH
    for row, length in enumerate(LENGTHS[:3]):
        f, z, b = attention_factors(model, batch(), layer=-1, row=row)
        near = attention_matrix(model, batch(), layer=-1, head=1, row=row)
        exact = attention_matrix(model, batch(), layer=2, head=1, row=row, exact=True)
        assert near.shape == exact.shape == (length, length)
        torch.testing.assert_close(near, (f @ z @ b)[0, 1])
        torch.testing.assert_close(exact.sum(1), torch.ones(length, dtype=torch.float64))
        error = (exact - near).norm() / exact.norm()
        assert errors[2, row, 1].item() == pytest.approx(error.item(), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"layer": 3}, "layer=3: there are 3"),
        ({"layer": 0, "row": 4}, "row=4: there are 4"),
        ({"layer": 0, "row": 3}, "row=3 is padding alone"),
        ({"layer": 0, "head": 2}, "head=2: there are 2"),
    ],
)
def test_what_is_not_there_is_named(asked, words):
    look = attention_matrix if "head" in asked else attention_factors
    with pytest.raises(IndexError, match=words):
        look(build(), batch(), **asked)


def test_asking_for_attentions_names_the_function():
    for model, asked in ((build(output_attentions=True), {}), (build(), {"output_attentions": True})):
        with pytest.raises(ValueError, match="attention_factors or attention_matrix"):
            model(**batch(), **asked)
    assert build(output_attentions=True)(**batch(), output_attentions=False).hidden_states is None


def test_the_example_of_the_documentation_draws_a_picture(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs/attention.md").read_text(encoding="utf-8")
    example = next(code for code in re.findall(r"```python\n(.*?)```", page, re.S) if "imshow" in code)
    monkeypatch.chdir(tmp_path)
    model, inputs = build(), {name: x[:1] for name, x in batch().items()}
    exec(example, {"model": model, "batch": inputs})
    assert (tmp_path / "attention.png").read_bytes().startswith(b"\x89PNG")
