"""The commands of the pages on starts do what the pages say, at smoke size."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForPreTraining

from nystromformer import NystromformerForPreTraining
from nystromformer.cli import main

DOCS = Path(__file__).parent.parent / "docs"


def commands(page: str) -> list[list[str]]:
    """The words after `nystromformer` of each command on a page."""
    blocks = re.findall(r"^```bash\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.S | re.M)
    return [shlex.split(line)[1:] for block in blocks for line in block.splitlines()]


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("starts")


@pytest.fixture(scope="module")
def smoke(here) -> list[str]:
    return ["debug=smoke", "data.workers=1", f"data.folder={here}/prepared", f"runs_folder={here}/runs"]


@pytest.fixture(scope="module")
def trained(here, smoke) -> Path:
    assert main(["pretrain", *smoke]) == 0
    return here / "runs/smoke/model"


@pytest.fixture(scope="module")
def bert(here, trained) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(trained)
    torch.manual_seed(2)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    BertForPreTraining(BertConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(here / "bert")
    tokenizer.save_pretrained(here / "bert")
    return here / "bert"


def filled(words: list[str], **names: Path) -> list[str]:
    """The words with a page's names replaced by folders."""
    return [
        word if "=" not in word else "=".join([key, str(names.get(value, value))])
        for word in words
        for key, _, value in [word.partition("=")]
    ]


def test_from_bert(here, smoke, bert, capsys, monkeypatch):
    monkeypatch.chdir(here)
    pretrain, convert, *with_text = commands("from_bert.md")
    init = [word for word in pretrain[1:] if word.startswith(("init", "data=", "name="))]
    assert main(["pretrain", *smoke, *filled(init, MY_BERT=bert)]) == 0
    out = capsys.readouterr().out
    for words in ("from the BERT", "taken", "new", "kernels fitted in closed form on 16 training rows"):
        assert words in out
    assert "from bert" in (here / "runs/from_bert/model/README.md").read_text()
    assert main(filled(convert, MY_BERT=bert)) == 0
    assert NystromformerForPreTraining.from_pretrained("converted_bert").config.attention == "nystrom"
    (here / "my.txt").write_text("A film that one remembers for years. " * 900)
    for words in with_text:
        words = [word for word in words if not word.startswith(("minutes", "convolution_rows"))]
        small = ["convolution_rows=2", *(["steps=1", "batch_size=1"] if "transfer=true" in words else [])]
        assert main([*filled(words, MY_BERT=bert), *small]) == 0
        (target,) = [word.removeprefix("target=") for word in words if word.startswith("target=")]
        model = NystromformerForPreTraining.from_pretrained(target)
        assert model.config.neighbours == 64
        fitted = "data" in " ".join(words)
        assert all(
            layer.attention.self.conv.weight.any() == fitted for layer in model.nystromformer.encoder.layer
        )


def test_from_transformers(here, trained, monkeypatch):
    monkeypatch.chdir(here)
    for words in commands("from_transformers.md"):
        assert main(filled(words, MY_NYSTROMFORMER=trained)) == 0
    assert {"converted", "converted_exact", "for_transformers"} <= {path.name for path in here.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("length", [1024, 1536])
def test_from_512_to_more(length, here, smoke, capsys):
    """The lengths of the paper, at a tiny width."""
    tiny = [*smoke, "training.steps=3", "training.validate_every=3", "training.validation_examples=4"]
    assert main(["pretrain", *tiny, "model.max_length=512", "model.num_landmarks=64", "name=at_512"]) == 0
    words = ["init=checkpoint", f"init.path={here}/runs/at_512/model", f"model.max_length={length}"]
    assert main(["pretrain", *tiny, *words, "model.num_landmarks=64", f"name=at_{length}"]) == 0
    out = capsys.readouterr().out
    assert f"512 positions made {length}" in out
    assert out.count("Held-out documents after 3 steps") == 2


@pytest.mark.parametrize("length", [128, 96])  # twice the length, and half as much again
def test_longer_documents(length, here, smoke, trained, capsys):
    pretrain, _ = commands("longer_documents.md")
    words = [
        word for word in pretrain[1:] if not word.startswith(("experiment", "init.path", "model.", "name"))
    ]
    changes = [f"init.path={trained}", f"model.max_length={length}", f"name=to_{length}"]
    assert main(["pretrain", *smoke, *words, *changes]) == 0
    assert f"64 positions made {length}" in capsys.readouterr().out
    model = here / f"runs/to_{length}/model"
    assert AutoTokenizer.from_pretrained(model).model_max_length == length
    assert NystromformerForPreTraining.from_pretrained(model).config.max_position_embeddings == length
