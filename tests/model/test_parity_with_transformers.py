"""Weights go both ways between this model and transformers' Nystromformer, with the same results
wherever transformers is right.

In float64, so that a gradient which is zero but for rounding (a key's bias moves no softmax) is small
beside the tolerance.
"""

from typing import Any

import pytest
import torch
from transformers.models.nystromformer import NystromformerConfig as TheirConfig
from transformers.models.nystromformer import modeling_nystromformer as theirs

from nystromformer import NystromformerConfig, NystromformerForMaskedLM, NystromformerModel

SHAPE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 64,
    "conv_kernel_size": 7,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "pad_token_id": 0,
}


def close(ours: torch.Tensor, other: torch.Tensor) -> None:
    scale = other.abs().max().clamp(min=1e-6)
    assert (ours - other).abs().max() <= 1e-5 * scale


def exact_pair() -> tuple[NystromformerForMaskedLM, torch.nn.Module]:
    """Both with exact attention: transformers takes that branch when landmarks equal its segment length."""
    torch.manual_seed(1)
    other = theirs.NystromformerForMaskedLM(TheirConfig(**SHAPE, num_landmarks=8, segment_means_seq_len=8))
    with torch.no_grad():  # larger weights than at the start, so that attention is not uniform
        for parameter in other.parameters():
            parameter.mul_(4)
    ours = NystromformerForMaskedLM(NystromformerConfig(**SHAPE, attention="softmax"))
    return ours.double(), other.double()


@pytest.mark.parametrize("direction", ["from transformers", "to transformers"])
def test_exact_branch_outputs_and_gradients(direction):
    ours, other = exact_pair()
    if direction == "from transformers":
        report = ours.load_state_dict(other.state_dict(), strict=False)
    else:
        with torch.no_grad():
            for parameter in ours.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        report = other.load_state_dict(ours.state_dict(), strict=False)
    assert not report.missing_keys
    assert not report.unexpected_keys
    ids = torch.randint(1, 97, (3, 29))
    types = torch.randint(0, 2, (3, 29))
    labels = torch.where(torch.rand(3, 29) < 0.3, ids, -100)
    mine = ours.eval()(ids, token_type_ids=types, labels=labels)
    their = other.eval()(ids, token_type_ids=types, labels=labels)
    close(mine.logits, their.logits)
    close(mine.loss, their.loss)
    mine.loss.backward()
    their.loss.backward()
    their_gradients = dict(other.named_parameters())
    for name, parameter in ours.named_parameters():
        close(parameter.grad, their_gradients[name].grad)


def test_nystrom_at_the_segment_length_outputs_and_gradients():
    """transformers is right for Nyström at its one length, without padding, when its maximum over the
    batch and the heads is over one matrix alone."""
    torch.manual_seed(2)
    shape = {**SHAPE, "num_attention_heads": 1, "num_hidden_layers": 2}
    other = theirs.NystromformerModel(TheirConfig(**shape, num_landmarks=8, segment_means_seq_len=48))
    ours = NystromformerModel(NystromformerConfig(**shape, num_landmarks=8), add_pooling_layer=False)
    ours.load_state_dict(other.state_dict())
    ours.double(), other.double()
    ids = torch.randint(1, 97, (1, 48))
    mine = ours.eval()(ids).last_hidden_state
    their = other.eval()(ids).last_hidden_state
    close(mine, their)
    weights = torch.randn_like(mine)
    (mine * weights).sum().backward()
    (their * weights).sum().backward()
    their_gradients = dict(other.named_parameters())
    for name, parameter in ours.named_parameters():
        close(parameter.grad, their_gradients[name].grad)


def test_a_saved_folder_opens_in_transformers_own_class(tmp_path):
    ours, _ = exact_pair()
    ours.save_pretrained(tmp_path)
    other = theirs.NystromformerForMaskedLM.from_pretrained(tmp_path).eval()
    assert other.dtype == torch.float64
    ids = torch.randint(1, 97, (2, 31))
    with torch.no_grad():
        close(ours.eval()(ids).logits, other(ids).logits)


def test_a_folder_of_transformers_opens_here_as_nystrom(tmp_path):
    _, other = exact_pair()
    other.save_pretrained(tmp_path)
    ours = NystromformerForMaskedLM.from_pretrained(tmp_path)
    assert ours.config.attention == "nystrom"
    exact = NystromformerForMaskedLM.from_pretrained(tmp_path, attention="softmax")
    ids = torch.randint(1, 97, (2, 31))
    with torch.no_grad():
        close(exact.eval()(ids).logits, other.eval()(ids).logits)
