"""Scripts of thousands of characters: what is known, what is not, and what is said about it."""

import random
import re
from collections import Counter
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from nystromformer.data.preparation_report import notes
from nystromformer.data.prepare import prepare
from nystromformer.data.tokenizer import train_tokenizer
from nystromformer.errors import UserError
from nystromformer.settings import TokenizerSettings
from nystromformer.settings.data import TOKENIZER_KINDS

from .conftest import made_up_documents, text_settings

HAN = [chr(0x4E00 + number) for number in range(3500)]
OTHERS = (
    [chr(0x0430 + n) for n in range(32)]
    + [chr(0x05D0 + n) for n in range(27)]
    + list("กขคงจฉ")
    + ["😀", "🧪"]
)


def chinese(sentences: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(HAN, k=25)) + "。" for _ in range(sentences)]


def train(texts: list[str], **settings: object) -> PreTrainedTokenizerFast:
    return train_tokenizer(texts, TokenizerSettings(**settings), max_length=64)  # type: ignore[arg-type]


def unknown_share(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> float:
    ids = [id for text in texts for id in tokenizer(text, add_special_tokens=False)["input_ids"]]
    return Counter(ids)[tokenizer.unk_token_id] / len(ids)


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_a_script_of_3500_characters_is_known(kind: str):
    texts = chinese(1000)
    assert unknown_share(train(texts, kind=kind, vocab_size=6000), texts) < 0.001


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_a_script_that_is_a_tenth_of_the_text_is_known(kind: str):
    texts = [*made_up_documents(80), *chinese(400), "".join(OTHERS), " ".join(OTHERS * 3)]
    tokenizer = train(texts, kind=kind, vocab_size=9000)
    assert unknown_share(tokenizer, texts) < 0.005
    assert unknown_share(tokenizer, ["".join(OTHERS)]) == 0 or kind == "wordpiece"
    assert unknown_share(tokenizer, ["א б 😀"]) == 0


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_the_coverage_decides_which_characters_are_unknown(kind: str):
    """Against a count of the characters: the rarest, of less than the rest of the text, and no other."""
    draw = random.Random(1)
    weights = [1 / (rank + 1) for rank in range(len(HAN))]
    texts = ["".join(draw.choices(HAN, weights, k=50)) for _ in range(1000)]
    counts = Counter("".join(texts))
    for coverage in (0.95, 1.0):
        tokenizer = train(texts, kind=kind, vocab_size=8000, character_coverage=coverage)
        known = {
            c
            for c in counts
            if tokenizer.unk_token_id not in tokenizer(c, add_special_tokens=False)["input_ids"]
        }
        covered = sum(counts[c] for c in known) / counts.total()
        assert coverage <= covered
        if coverage < 1:
            assert len(known) >= 1000  # BERT's are kept in any case
            assert covered - min(counts[c] for c in known) / counts.total() < coverage
            assert max(counts[c] for c in counts.keys() - known) <= min(counts[c] for c in known)


def test_a_character_that_is_a_word_takes_one_piece():
    tokens = train(chinese(1000), vocab_size=6000).get_vocab()
    assert not [token for token in tokens if token.startswith("##") and token[2:] in HAN]


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_a_vocabulary_smaller_than_the_alphabet_is_refused_with_what_helps(kind: str):
    texts = chinese(1000)
    with pytest.raises(UserError) as caught:
        train(texts, kind=kind, vocab_size=1200)
    message = str(caught.value)
    assert "\n" not in message
    least = int(re.search(r"at least (\d+)", message)[1])  # type: ignore[index]
    assert unknown_share(train(texts, kind=kind, vocab_size=least), texts) < 0.001
    with pytest.raises(UserError, match="smaller than the alphabet"):
        train(texts, kind=kind, vocab_size=least - 1)
    coverage = float(re.search(r"character_coverage=([\d.]+),", message)[1])  # type: ignore[index]
    share = unknown_share(train(texts, kind=kind, vocab_size=1200, character_coverage=coverage), texts)
    assert 0 < share < 1 - coverage + 0.05
    assert unknown_share(train(texts, kind="bpe", vocab_size=1200), texts) == 0


@pytest.mark.parametrize("coverage", [0.0, -1.0, 1.5])
def test_an_impossible_coverage_is_named(coverage: float):
    (complaint,) = TokenizerSettings(character_coverage=coverage).complaints()
    assert f"tokenizer.character_coverage={coverage} is impossible" in complaint


def test_the_share_of_unknown_tokens_is_printed_and_a_high_one_explained(
    corpus_file: Path, tmp_path: Path, capsys
):
    settings = text_settings(corpus_file, tmp_path / "known")
    prepare(settings)
    assert "0.00% of the tokens are unknown\n" in capsys.readouterr().err
    path = tmp_path / "chinese.txt"
    path.write_text("\n\n".join("".join(chinese(5, seed)) for seed in range(60)))
    settings = text_settings(path, tmp_path / "unknown")
    settings.tokenizer.vocab_size, settings.tokenizer.character_coverage = 3000, 0.5
    prepared = prepare(settings)
    share = prepared.manifest["report"]["unknown_token_share"]
    assert share > 0.1
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "unknown" in line)
    assert line.startswith(f"{share:.2%} of the tokens are unknown: ")
    assert "tokenizer.character_coverage=1" in line
    assert line.split(": ")[1][:40] in (prepared.folder / "report.html").read_text()


def test_what_explains_a_high_share_follows_the_tokenizer():
    report = {"unknown_token_share": 0.2, "documents": {"dropped": {}, "first_dropped": {}}}
    for settings, part in (
        ({"path": "mine", "kind": "wordpiece"}, "the tokenizer of mine"),
        ({"path": None, "kind": "wordpiece", "character_coverage": 0.9}, "longer than 100 characters"),
        ({"path": None, "kind": "unigram", "character_coverage": 0.9}, "tokenizer=bpe"),
    ):
        (said,) = notes(report, settings)
        assert said.startswith("20.00% of the tokens are unknown: ")
        assert part in said
    (said,) = notes(report | {"unknown_token_share": 0.001}, {"path": "mine"})
    assert said == "0.10% of the tokens are unknown"
