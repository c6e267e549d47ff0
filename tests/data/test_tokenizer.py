import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from nystromformer.data.tokenizer import (
    content_hash,
    continuation_ids,
    load_tokenizer,
    replacement_ids,
    train_tokenizer,
)
from nystromformer.errors import UserError
from nystromformer.settings import TokenizerSettings

from .conftest import made_up_documents

TEXTS = made_up_documents(60)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, TokenizerSettings(vocab_size=300), max_length=64)


def test_it_is_berts_layout(tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    assert len(tokenizer) == 300
    assert tokenizer.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.model_max_length == 64
    assert content_hash(loaded) == content_hash(tokenizer)
    pair = loaded("Bada.", "Dodo", return_token_type_ids=True)
    assert loaded.decode(pair["input_ids"]) == "[CLS] bada. [SEP] dodo [SEP]"
    assert pair["token_type_ids"][0] == 0
    assert pair["token_type_ids"][-1] == 1


def test_case_is_kept_on_request():
    cased = train_tokenizer(TEXTS, TokenizerSettings(vocab_size=300, lowercase=False), max_length=64)
    assert cased.decode(cased("Bada")["input_ids"], skip_special_tokens=True) == "Bada"


def test_training_again_in_another_process_gives_the_same(tokenizer: PreTrainedTokenizerFast):
    # Hash maps are ordered by the process' random key: the trainer alone is not deterministic.
    program = (
        "from tests.data.test_tokenizer import *\n"
        "print(content_hash(train_tokenizer(TEXTS, TokenizerSettings(vocab_size=300), max_length=64)))"
    )
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root)
    assert result.stdout.strip() == content_hash(tokenizer), result.stderr


def test_a_large_alphabet_leaves_half_of_a_small_vocabulary_for_words():
    greek_and_chinese = "".join(map(chr, [*range(0x3B1, 0x3C9), *range(0x4E00, 0x4E00 + 400)]))
    texts = [*TEXTS, greek_and_chinese]
    settings = TokenizerSettings(vocab_size=300, character_coverage=0.98)
    tokenizer = train_tokenizer(texts, settings, max_length=64)
    assert len(tokenizer) == 300
    assert sum(len(token.removeprefix("##")) > 1 for token in tokenizer.get_vocab()) >= 150
    assert tokenizer.unk_token_id in tokenizer("\u4e00" + chr(0x4E00 + 399))["input_ids"]


@pytest.mark.parametrize("texts", [[], [" \n"]])
def test_nothing_to_train_on_is_refused(texts: list[str]):
    with pytest.raises(UserError, match="holds no word"):
        train_tokenizer(texts, TokenizerSettings(), max_length=64)


def test_replacements_are_text(tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    assert replacement_ids(tokenizer) == list(range(5, 300))
    tokenizer.save_pretrained(tmp_path)
    extended = AutoTokenizer.from_pretrained(tmp_path)
    extended.add_tokens(["extra"])
    assert replacement_ids(extended) == list(range(5, 300))
    pieces = continuation_ids(tokenizer)
    assert pieces
    assert all(token.startswith("##") for token in tokenizer.convert_ids_to_tokens(pieces))


def test_a_tokenizer_without_a_special_token_is_refused(tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    lacking = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )
    lacking.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has no mask_token"):
        load_tokenizer(str(tmp_path))


def test_no_tokenizer_is_named_in_one_line(tmp_path: Path):
    for path in (str(tmp_path), "no-such/tokenizer"):
        with pytest.raises(UserError) as caught:
            load_tokenizer(path)
        assert repr(path) in str(caught.value)
        assert "\n" not in str(caught.value)
