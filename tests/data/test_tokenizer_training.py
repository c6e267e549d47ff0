import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from nystromformer.data.prepare import prepare
from nystromformer.data.tokenizer import (
    content_hash,
    continuation_ids,
    load_tokenizer,
    replacement_ids,
    special_tokens,
    train_tokenizer,
)
from nystromformer.settings import TokenizerSettings
from nystromformer.settings.data import TOKENIZER_KINDS

from .conftest import made_up_documents, text_settings

TEXTS = [*made_up_documents(60), "Don't stop, naïve reader: 1999 is over. Ünïcode 😀."]
SETTINGS = {kind: TokenizerSettings(kind=kind, vocab_size=400) for kind in TOKENIZER_KINDS}


@pytest.fixture(scope="module")
def trained() -> dict[str, PreTrainedTokenizerFast]:
    return {kind: train_tokenizer(TEXTS, SETTINGS[kind], max_length=64) for kind in TOKENIZER_KINDS}


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_it_loads_again_and_frames_pairs(trained, kind: str, tmp_path: Path):
    tokenizer = trained[kind]
    assert len(tokenizer) <= 400
    assert tokenizer.convert_ids_to_tokens(range(5)) == list(special_tokens(kind).values())
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert content_hash(loaded) == content_hash(tokenizer)
    pair = AutoTokenizer.from_pretrained(tmp_path)("bada dodo", "kili", return_token_type_ids=True)
    tokens = loaded.convert_ids_to_tokens(pair["input_ids"])
    assert (tokens[0], tokens[-1], tokens.count("[SEP]")) == ("[CLS]", "[SEP]", 2)
    assert (pair["token_type_ids"][0], pair["token_type_ids"][-1]) == (0, 1)
    assert loaded.decode(pair["input_ids"], skip_special_tokens=True).split() == ["bada", "dodo", "kili"]
    assert not set(replacement_ids(loaded)) & set(range(5))


def test_training_again_in_another_process_gives_the_same(trained):
    program = (
        "from tests.data.test_tokenizer_training import *\n"
        "for kind in TOKENIZER_KINDS:\n"
        "    print(content_hash(train_tokenizer(TEXTS, SETTINGS[kind], max_length=64)))"
    )
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root)
    expected = [content_hash(trained[kind]) for kind in TOKENIZER_KINDS]
    assert result.stdout.split() == expected, result.stderr


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_words_begin_where_the_text_has_them(trained, kind: str):
    text = "bada luruki 1999 dodo."
    ids = trained[kind](text, add_special_tokens=False)["input_ids"]
    continues = np.isin(ids, continuation_ids(trained[kind]))
    words: list[str] = []
    for token, inside in zip(trained[kind].convert_ids_to_tokens(ids), continues, strict=True):
        piece = token.removeprefix("##").removeprefix("▁").removeprefix("Ġ")
        if inside:
            words[-1] += piece
        else:
            words.append(piece)
    if "[UNK]" not in words and "<unk>" not in words:
        assert words == ["bada", "luruki", "1999", "dodo", "."]
    assert any(continues)


def test_bytes_leave_nothing_unknown(trained):
    tokenizer = trained["bpe"]
    for text in ("汉字 😀 \u05d0\u05d1", "naïve"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids).strip() == text


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_a_corpus_prepares_with_it(kind: str, corpus_file: Path, tmp_path: Path):
    settings = text_settings(corpus_file, tmp_path)
    settings.tokenizer = SETTINGS[kind]
    prepared = prepare(settings, show_progress=False)
    assert prepared.manifest["report"]["unknown_token_share"] < 0.01
    assert prepared.manifest["counts"]["train"]["chunks"] > 100
