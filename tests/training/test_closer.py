"""`convert` with text: fitted and trained models, whole or absent, and what is refused."""

import os
import signal
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForPreTraining, BertModel, BertTokenizerFast

from nystromformer import NystromformerForPreTraining
from nystromformer.cli import main
from nystromformer.data.corpora import open_corpus
from nystromformer.settings.data import DataSettings
from nystromformer.training.attention_transfer import HiddenStates, text_rows

WORDS = [f"w{number}" for number in range(60)]
LENGTH = 64


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """A BERT with a tokenizer, and a text whose words are all known: 40 documents of 10 to 165 words."""
    folder = tmp_path_factory.mktemp("closer")
    (folder / "bert").mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder / "bert")
    torch.manual_seed(4)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(
        **shape, vocab_size=len(tokenizer), max_position_embeddings=LENGTH, initializer_range=0.15
    )
    BertForPreTraining(config).save_pretrained(folder / "bert")
    draw = torch.Generator().manual_seed(0)
    texts = [
        " ".join(WORDS[i] for i in torch.randint(60, (10 + 5 * (number % 32),), generator=draw))
        for number in range(40)
    ]
    (folder / "text.txt").write_text("\n\n".join(texts))
    return folder


def words(here: Path, target: str, *more: str) -> list[str]:
    source = [f"source={here}/bert", f"target={here}/{target}", "num_landmarks=8", "neighbours=4"]
    return ["convert", *source, "data=text", f"data.files=[{here}/text.txt]", *more]


@torch.no_grad()
def error(here: Path, folder: str) -> float:
    ours = NystromformerForPreTraining.from_pretrained(here / folder).nystromformer.eval()
    bert = BertModel.from_pretrained(here / "bert").eval()
    ids = torch.randint(5, 65, (8, LENGTH), generator=torch.Generator().manual_seed(9))
    wanted = bert(ids).last_hidden_state
    return float((ours(ids).last_hidden_state - wanted).norm() / wanted.norm())


def test_fitted_is_closer_reconstructed_closer_still_and_training_goes_on(here, capsys):
    assert main([*words(here, "zero")[:5], "convolution=zero"]) == 0
    assert main(words(here, "fitted")) == 0
    out = capsys.readouterr().out
    assert "kernels fitted in closed form on 16 training rows" in out
    assert "exact neighbours in blocks of 4" in out
    more = ["convolution=reconstructed", "convolution_rows=30"]
    assert main(words(here, "reconstructed", *more)) == 0
    assert "output projections too" in capsys.readouterr().out
    transfer = ["transfer=true", "steps=40", "learning_rate=3e-4", "minutes=null"]
    assert main(words(here, "transferred", *more, *transfer)) == 0
    out = capsys.readouterr().out
    assert "transfer of all: 40 steps of 4 rows" in out
    assert "step 40/40" in out
    zero, fitted, reconstructed, transferred = (
        error(here, name) for name in ("zero", "fitted", "reconstructed", "transferred")
    )
    assert transferred < reconstructed < min(fitted, zero)
    assert fitted == pytest.approx(zero, rel=0.05)  # random weights look at no neighbours
    assert AutoTokenizer.from_pretrained(here / "fitted").model_max_length == LENGTH


@pytest.mark.parametrize(
    ("trained", "moved"),
    [
        ("mechanism", lambda name: name.endswith("conv.weight")),
        ("small", lambda name: name.endswith(("conv.weight", ".bias")) or ".LayerNorm." in name),
        ("layers", lambda name: not any(f".self.{part}." in name for part in ("query", "key", "value"))),
        ("all", lambda name: True),
    ],
)
def test_what_is_trained_and_nothing_else(here, trained, moved):
    start = ["convolution=zero", "transfer=true", "batch_size=1", "steps=2", f"trained={trained}"]
    assert main(words(here, f"of_{trained}", *start)) == 0
    assert main(words(here, f"for_{trained}")[:5]) == 0
    before = NystromformerForPreTraining.from_pretrained(here / f"for_{trained}").state_dict()
    after = NystromformerForPreTraining.from_pretrained(here / f"of_{trained}").state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    layers = {name for name in before if ".encoder.layer." in name}
    # Softmax does not see a bias of the keys.
    assert {n for n in changed if "key.bias" not in n} == {
        n for n in layers if moved(n) and "key.bias" not in n
    }


def test_the_time_limit_ends_it(here, capsys):
    assert main(words(here, "hurried", "transfer=true", "steps=100000", "minutes=0.01")) == 0
    out = capsys.readouterr().out
    steps = int(out.split("transfer of all: ")[1].split()[0])
    assert 0 < steps < 100000


def test_a_stopped_transfer_goes_on_and_comes_to_the_same(here, capsys, monkeypatch):
    more = ["transfer=true", "steps=6", "learning_rate=3e-4", "minutes=null", "batch_size=2"]
    assert main(words(here, "unstopped", *more)) == 0
    means, calls = HiddenStates.means, []

    def stopped(self, model, batch):
        calls.append(batch)
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return means(self, model, batch)

    monkeypatch.setattr(HiddenStates, "means", stopped)
    with pytest.raises(SystemExit) as left:
        main(words(here, "stopped", *more))
    assert left.value.code == 143
    assert "stopped at step 3; the same command goes on from there" in capsys.readouterr().out
    assert not (here / "stopped").exists()
    assert main(words(here, "stopped", *more)) == 0
    assert len(calls) == 6 * 2
    assert "transfer of all: 6 steps of 2 rows" in capsys.readouterr().out
    assert not [path for path in here.iterdir() if ".transfer-" in path.name]
    whole, parted = (
        NystromformerForPreTraining.from_pretrained(here / name).state_dict()
        for name in ("unstopped", "stopped")
    )
    assert all(torch.equal(whole[name], parted[name]) for name in whole)


def test_what_is_no_better_is_undone(here, capsys):
    more = ["transfer=true", "steps=3", "learning_rate=0.3", "trained=mechanism", "batch_size=1"]
    assert main(words(here, "worse", *more)) == 0
    assert "no better: the weights are as they were" in capsys.readouterr().out
    assert main(words(here, "not_worse")) == 0
    before, after = (
        NystromformerForPreTraining.from_pretrained(here / name).state_dict()
        for name in ("not_worse", "worse")
    )
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_nothing_is_left_of_one_that_failed(here, capsys):
    assert main(words(here, "failed", "transfer=true", "steps=5", "learning_rate=1e30")) == 2
    assert "write a smaller learning_rate" in capsys.readouterr().err
    assert not [path for path in here.iterdir() if "failed" in path.name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["data=null"], None),
        (["data=null", "transfer=true"], "transfer=true needs text: write data=imdb"),
        (["data=null", "convolution=fitted"], "convolution=fitted needs text"),
        (["convolution=zero"], "is for convolution=fitted or transfer=true"),
        (["convolution=fit"], "convolution='fit' is unknown"),
        (["trained=biases"], "trained='biases' is unknown: write one of mechanism"),
        (["steps=0"], "steps=0 is impossible"),
        (["minutes=0"], "minutes=0.0 is impossible"),
        (["attention=softmax"], "softmax made softmax: write data=null"),
        (["data.files=[nowhere.txt]"], "nowhere.txt"),
    ],
)
def test_impossible_settings(here, change, message, capsys):
    target = "plain" if message is None else "refused"
    given = words(here, target)
    if "data=null" in change:
        given = given[:5]
    if any(word.startswith("data.files") for word in change):
        given = [word for word in given if not word.startswith("data.files")]
    code = main([*given, *change])
    captured = capsys.readouterr()
    if message is None:
        assert code == 0
        return
    assert code == 2
    said = [line for line in captured.err.splitlines() if line.startswith("nystromformer: ")]
    assert len(said) == 1
    assert message in said[0]
    assert not (here / "refused").exists()


def test_a_target_that_cannot_be_written_is_found_before_the_work(here, capsys):
    assert main(words(here, "text.txt/below", "transfer=true")) == 2
    captured = capsys.readouterr()
    (said,) = (line for line in captured.err.splitlines() if line.startswith("nystromformer: "))
    assert said == (
        f"nystromformer: target={here}/text.txt/below cannot be written: {here}/text.txt is a file"
    )
    assert "step" not in captured.out


def test_a_trained_convolution_is_not_fitted(here, capsys):
    assert main(words(here, "made")) == 0
    again = [word.replace("/bert", "/made") for word in words(here, "refused")]
    assert main(again) == 2
    assert "nystrom made nystrom: write data=null" in capsys.readouterr().err


def test_a_tokenizer_of_other_weights_is_refused(here, tmp_path, capsys):
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "x"])
    )
    BertTokenizerFast(vocab=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    for given in (words(here, "refused"), words(here, "refused")[:5]):
        assert main([*given, f"tokenizer_path={tmp_path}"]) == 2
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("nystromformer: ")]
        assert len(said) == 1
        assert (
            f"source={here}/bert has 65 word embeddings and the tokenizer of {tmp_path} 66 tokens" in said[0]
        )
        assert not (here / "refused").exists()


def test_rows_are_whole_and_of_mixed_lengths(here):
    tokenizer = AutoTokenizer.from_pretrained(here / "bert")
    settings = DataSettings(corpus="text", files=[str(here / "text.txt")])
    rows = [row["input_ids"] for row in text_rows(open_corpus(settings), tokenizer, LENGTH)]
    assert [row.shape[1] for row in rows[:6]] == [64, 64, 32, 16, 64, 64]
    assert all(row[0, 0] == tokenizer.cls_token_id and row[0, -1] == tokenizer.sep_token_id for row in rows)
    assert all((row[0, 1:-1] >= 5).all() for row in rows)
    # The first document has 10 words, which do not fill a row; the second goes on in it.
    first = (here / "text.txt").read_text().split("\n\n")[:5]
    start = tokenizer(" ".join(first), add_special_tokens=False)["input_ids"]
    assert rows[0][0, 1:-1].tolist() == start[:62]


def test_a_text_of_less_than_a_row(here, tmp_path, capsys):
    (tmp_path / "short.txt").write_text(" ".join(WORDS[:20]))
    (tmp_path / "nothing.txt").write_text("w1 w2")
    tokenizer = AutoTokenizer.from_pretrained(here / "bert")
    settings = DataSettings(corpus="text", files=[str(tmp_path / "short.txt")])
    (row,) = text_rows(open_corpus(settings), tokenizer, LENGTH)
    assert row["input_ids"].shape == (1, 22)
    given = [word for word in words(here, "refused") if not word.startswith("data.files")]
    assert main([*given, f"data.files=[{tmp_path}/nothing.txt]"]) == 2
    assert "less than a row of text" in capsys.readouterr().err
