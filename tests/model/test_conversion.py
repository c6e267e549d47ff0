"""Starts from other checkpoints, on folders that transformers itself wrote."""

import pytest
import torch
from transformers import BertConfig, BertForPreTraining, BertModel, DistilBertConfig, DistilBertModel

from nystromformer import NystromformerConfig, NystromformerForPreTraining
from nystromformer.errors import UserError
from nystromformer.model.source import grow_positions, open_source

SHAPE = {
    "vocab_size": 90,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def nystromformer(**changes) -> NystromformerForPreTraining:
    torch.manual_seed(3)
    settings = {
        **SHAPE, "vocab_size": 128, "num_landmarks": 16, "conv_kernel_size": 5,
        "max_position_embeddings": 40, "layer_norm_eps": 1e-12, **changes,
    }  # fmt: skip
    return NystromformerForPreTraining(NystromformerConfig(**settings)).eval()


def bert_folder(tmp_path, model_class=BertForPreTraining) -> str:
    torch.manual_seed(4)
    model_class(BertConfig(**SHAPE, max_position_embeddings=40, hidden_act="gelu_new")).save_pretrained(
        tmp_path
    )
    return str(tmp_path)


def test_up_to_m_tokens_the_model_equals_its_bert(tmp_path):
    model = nystromformer()
    transfer = open_source(bert_folder(tmp_path), "bert").copy_into(model)
    assert all("conv" in name for name in transfer.new)
    bert = BertForPreTraining.from_pretrained(tmp_path).eval()
    ids = torch.randint(5, 90, (3, 16))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    types = torch.randint(0, 2, ids.shape)
    with torch.no_grad():
        ours = model(ids, mask, types)
        theirs = bert(ids, mask, types)
    torch.testing.assert_close(
        ours.prediction_logits[mask.bool()][:, :90], theirs.prediction_logits[mask.bool()], atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        ours.seq_relationship_logits, theirs.seq_relationship_logits, atol=1e-5, rtol=0
    )


def test_a_bert_without_heads_leaves_them_new(tmp_path):
    transfer = open_source(bert_folder(tmp_path, BertModel), "bert").copy_into(nystromformer())
    assert any(name.startswith("cls.predictions.transform") for name in transfer.new)
    assert any(name.startswith("cls.seq_relationship") for name in transfer.new)
    assert "nystromformer.pooler.dense.weight" in transfer.taken


def test_a_checkpoint_grown_to_more_positions_keeps_its_first_outputs(tmp_path):
    short = nystromformer()
    short.save_pretrained(tmp_path)
    grown = nystromformer(max_position_embeddings=65)
    transfer = open_source(str(tmp_path), "checkpoint").copy_into(grown)
    assert not transfer.new
    assert not transfer.left_out
    ids = torch.randint(5, 90, (2, 40))
    with torch.no_grad():
        torch.testing.assert_close(
            grown(ids).prediction_logits, short(ids).prediction_logits, atol=1e-6, rtol=0
        )
        assert grown(torch.randint(5, 90, (2, 65))).prediction_logits.isfinite().all()


def test_positions_are_tiled_in_order():
    table = torch.arange(2 + 4.0)[:, None]
    assert grow_positions(table, 6)[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 2, 3]
    assert grow_positions(table, 3)[:, 0].tolist() == [0, 1, 2, 3, 4]


def test_wrong_starts_name_the_fix(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint there"):
        open_source(str(tmp_path / "absent"), "bert").copy_into(nystromformer())
    DistilBertModel(DistilBertConfig(dim=32, n_layers=1, n_heads=2, hidden_dim=8)).save_pretrained(
        tmp_path / "distil"
    )
    with pytest.raises(UserError, match="distilbert, not a BERT"):
        open_source(str(tmp_path / "distil"), "bert").copy_into(nystromformer())
    bert = bert_folder(tmp_path / "bert")
    with pytest.raises(UserError, match=r"write model.num_hidden_layers=2"):
        open_source(bert, "bert").copy_into(nystromformer(num_hidden_layers=3))
    with pytest.raises(UserError, match=r"tokenizer.path="):
        open_source(bert, "bert").copy_into(nystromformer(vocab_size=512))
    with pytest.raises(UserError, match="write init=bert"):
        open_source(bert, "checkpoint").copy_into(nystromformer())


def test_pickled_weights_are_not_opened(tmp_path):
    folder = bert_folder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"bert.pooler.dense.bias": torch.zeros(32)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors"):
        open_source(folder, "bert").copy_into(nystromformer())
