import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nystromformer import NystromformerConfig, NystromformerForPreTraining
from nystromformer.training.flops import forward_flops, peak_of, training_flops


def config(**changes) -> NystromformerConfig:
    shape = {
        "vocab_size": 512,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "num_landmarks": 16,
        "max_position_embeddings": 128,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "conv_kernel_size": None,
    }
    return NystromformerConfig(**{**shape, **changes})


@pytest.mark.parametrize("length", [12, 96])
def test_the_formula_is_what_torch_counts_with_exact_attention(length):
    model = NystromformerForPreTraining(config(attention="softmax")).eval()
    ids = torch.randint(5, 512, (3, length))
    labels = torch.where(torch.rand(ids.shape) < 0.15, ids, -100)
    labels[0, 0] = 7
    order = torch.zeros(3, dtype=torch.long)
    # The fused kernel of a CPU is not in torch's table of costs.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=labels, sentence_order_label=order)
    predicted = int((labels != -100).sum())
    ours = forward_flops(model.config, np.full(3, length), predicted)
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_nystrom_by_hand():
    n, d, f, heads, m, p, layers = 96, 64, 128, 4, 16, 6, 2
    attention = 8 * n * m * d + 4 * m * m * d + 8 * p * heads * m**3
    expected = layers * (8 * n * d * d + 4 * n * d * f + attention) + 2 * d * d + 4 * d
    assert forward_flops(config(), np.array([n]), 0) == expected
    assert training_flops(config(), np.array([n]), 0) == 3 * expected
    with_convolution = forward_flops(config(conv_kernel_size=33), np.array([n]), 0)
    assert with_convolution - expected == layers * 2 * n * d * 33


def test_neighbours_by_hand():
    n, d, m, w, layers = 96, 64, 16, 8, 2
    more = forward_flops(config(neighbours=w), np.array([n]), 0) - forward_flops(config(), np.array([n]), 0)
    near, far = 4 * n * (3 * w + 1) * d, 2 * m * m * d * (n // w - 1)
    assert more == layers * (near + far)
    salient = forward_flops(config(neighbours=w, salient_tokens=5), np.array([n]), 0)
    assert salient - forward_flops(config(neighbours=w), np.array([n]), 0) == layers * 4 * n * 4 * d
    exact = forward_flops(config(attention="softmax"), np.array([n]), 0)
    assert forward_flops(config(neighbours=n // 2), np.array([n]), 0) == exact


def test_a_row_no_longer_than_the_landmarks_is_exact():
    short = np.array([16, 3])
    assert forward_flops(config(), short, 4) == forward_flops(config(attention="softmax"), short, 4)


@pytest.mark.parametrize(
    ("name", "dtype", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", torch.bfloat16, 989.5),
        ("NVIDIA H100 PCIe", torch.bfloat16, 756.0),
        ("NVIDIA A100-SXM4-80GB", torch.float32, 19.5),
        ("NVIDIA L40S", torch.bfloat16, 362.05),
        ("NVIDIA B200", torch.bfloat16, 2250.0),
        ("NVIDIA GB200", torch.bfloat16, 2500.0),
        ("NVIDIA B300 SXM6 AC", torch.bfloat16, 2250.0),
        ("NVIDIA GeForce RTX 5090", torch.bfloat16, 209.5),
        ("NVIDIA L40", torch.bfloat16, None),
        ("Imaginary 1", torch.bfloat16, None),
    ],
)
def test_peaks(name, dtype, tera):
    assert peak_of(name, dtype) == (None if tera is None else tera * 1e12)


def test_tf32_counts_where_it_is_allowed():
    assert peak_of("NVIDIA A100-SXM4-80GB", torch.float32, tf32=True) == 156e12
