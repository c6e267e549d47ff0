"""Output projections in closed form: known answers, and what stays as it was."""

import copy

import pytest
import torch

from nystromformer.model.closed_form import (
    fit_convolutions,
    fit_in_closed_form,
    reconstruct,
    with_exact_attention,
)
from tests.model.test_fitted_convolution import encoder


def rows(count: int = 6, tokens: int = 40) -> list[dict[str, torch.Tensor]]:
    return [{"input_ids": torch.randint(5, 60, (1, tokens))} for _ in range(count)]


@torch.no_grad()
def error(model, exact, batches) -> float:
    pairs = [(model(**b).last_hidden_state, exact(**b).last_hidden_state) for b in batches]
    return (
        float(sum((x - y).square().sum() for x, y in pairs) / sum(y.square().sum() for _, y in pairs)) ** 0.5
    )


@torch.no_grad()
@pytest.mark.parametrize("neighbours", [None, 4])
def test_the_first_projection_is_the_ridge_regressions(neighbours):
    """Against ridge regression solved another way, as least squares with rows for the penalty."""
    model = encoder(neighbours=neighbours)
    exact, batches = with_exact_attention(model), rows(12)
    for layer in exact.encoder.layer:
        layer.attention.self.conv = None
    before = copy.deepcopy(model.encoder.layer[0].attention)
    x, wanted = [], []
    for batch in batches:
        hidden = model.embeddings(batch["input_ids"], None, None, None)
        x.append(before.self(hidden, None, None)[0].double())
        target = exact.encoder.layer[0].attention
        wanted.append(target.output.dense(target.self(hidden, None, None))[0].double())
    x, wanted = torch.cat(x), torch.cat(wanted)
    weight, bias = before.output.dense.weight.double(), before.output.dense.bias.double()
    penalty = 0.3 * x.square().sum(0).mean()
    columns = torch.cat([x, torch.ones(len(x), 1)], 1)
    held = torch.cat([penalty.sqrt() * torch.eye(24), torch.zeros(24, 1)], 1)
    right = torch.cat([wanted - x @ weight.T - bias, torch.zeros(24, 24)])
    move = torch.linalg.lstsq(torch.cat([columns, held]).double(), right).solution
    reconstruct(model, exact, batches, ridge=0.3)
    found = model.encoder.layer[0].attention.output.dense
    torch.testing.assert_close(found.weight.double(), weight + move[:-1].T, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found.bias.double(), bias + move[-1], atol=1e-4, rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("neighbours", [None, 4])
def test_other_rows_come_closer_too(neighbours):
    torch.manual_seed(1)
    model = encoder(neighbours=neighbours, initializer_range=0.15)
    for layer in model.encoder.layer:
        layer.attention.self.conv.weight.zero_()
    exact, held_out = with_exact_attention(model), rows(8)
    batches = rows(96)
    errors = [error(model, exact, held_out)]
    fit_convolutions(model, batches)
    errors.append(error(model, exact, held_out))
    told = reconstruct(model, exact, batches)
    errors.append(error(model, exact, held_out))
    assert errors[2] < errors[1] <= errors[0]
    assert len(told) == 2
    assert all(after < before for before, after in told)
    assert told[-1][1] == pytest.approx(error(model, exact, batches[:4]), rel=1e-3)


@torch.no_grad()
def test_only_projections_move_and_an_exact_model_stays():
    model = encoder()
    exact, kept = with_exact_attention(model), copy.deepcopy(model.state_dict())
    reconstruct(model, exact, rows())
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, kept[name])}
    assert moved == {
        f"encoder.layer.{layer}.{part}.dense.{kind}"
        for layer in range(2)
        for part in ("attention.output", "output")
        for kind in ("weight", "bias")
    }
    short = encoder()  # rows of at most m tokens: the two models are the same
    reconstruct(short, with_exact_attention(short), rows(3, tokens=6))
    for name, tensor in short.state_dict().items():
        torch.testing.assert_close(tensor, kept[name], atol=1e-4, rtol=0)


@torch.no_grad()
def test_padding_changes_nothing():
    ids = torch.randint(5, 60, (2, 40))
    mask = torch.ones_like(ids)
    mask[1, 25:] = 0
    padded, alone = encoder(), encoder()
    reconstruct(padded, with_exact_attention(padded), [{"input_ids": ids, "attention_mask": mask}])
    cut = [{"input_ids": ids[:1]}, {"input_ids": ids[1:, :25]}]
    reconstruct(alone, with_exact_attention(alone), cut)
    for name, tensor in padded.state_dict().items():
        torch.testing.assert_close(tensor, alone.state_dict()[name], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("how", ["fitted", "scaled", "reconstructed"])
def test_what_the_kernels_held_means_nothing(how):
    """A new convolution is overwritten, whatever it was made with."""
    batches = rows(2)
    models = [encoder(), encoder()]
    for layer in models[1].encoder.layer:
        torch.nn.init.normal_(layer.attention.self.conv.weight)
    said = [fit_in_closed_form(model, batches, how) for model in models]
    assert said[0] == said[1]
    assert ("output projections" in said[0]) == (how == "reconstructed")
    for name, tensor in models[0].state_dict().items():
        torch.testing.assert_close(tensor, models[1].state_dict()[name], atol=1e-5, rtol=1e-5)
