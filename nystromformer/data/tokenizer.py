"""The tokenizer: a BERT WordPiece trained on the corpus, or one taken from a folder or the hub."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from nystromformer.errors import UserError
from nystromformer.settings import TokenizerSettings

SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_ALPHABET_LIMIT = 1000  # as BERT's: rarer characters become [UNK]
_RESERVED = re.compile(r"\[unused\d+\]")


def train_wordpiece(
    texts: Iterable[str], settings: TokenizerSettings, *, max_length: int
) -> PreTrainedTokenizerFast:
    """Train BERT's WordPiece on `texts`: the same texts give the same vocabulary, id for id.

    Raises UserError when the texts hold no word.
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=settings.lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    texts = list(texts)
    # A character costs up to two entries; half of a small vocabulary is left for words.
    alphabet, inner = _alphabet(texts, tokenizer, limit=min(_ALPHABET_LIMIT, settings.vocab_size // 4))
    special = list(SPECIAL_TOKENS.values())
    # The trainer numbers the inner characters ("##a") in the order of a hash map, which differs from
    # run to run and decides between pairs of equal frequency. Naming them all beforehand fixes it.
    reserved = [*special, *("##" + character for character in inner)]
    if not alphabet:
        raise UserError("the corpus holds no word to train a tokenizer on: point data at documents with text")
    trainer = trainers.WordPieceTrainer(
        vocab_size=settings.vocab_size,
        min_frequency=settings.min_frequency,
        special_tokens=reserved,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)

    # Start again from the vocabulary alone, where only the five special tokens are special.
    trained = Tokenizer(
        models.WordPiece(tokenizer.get_vocab(), unk_token="[UNK]", max_input_chars_per_word=100)
    )
    trained.normalizer = tokenizer.normalizer
    trained.pre_tokenizer = tokenizer.pre_tokenizer
    trained.decoder = decoders.WordPiece(prefix="##")
    trained.add_special_tokens(special)
    ids = {token: trained.token_to_id(token) for token in ("[CLS]", "[SEP]")}
    trained.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=list(ids.items()),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=trained,
        model_max_length=max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **SPECIAL_TOKENS,
    )


def _alphabet(texts: list[str], tokenizer: Tokenizer, limit: int) -> tuple[list[str], list[str]]:
    """The `limit` most frequent characters after normalization, and those that occur inside words."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(tokenizer.normalizer.normalize_str(text))
    visible = ((character, count) for character, count in counts.items() if not character.isspace())
    by_frequency = sorted(visible, key=lambda item: (-item[1], item[0]))
    alphabet = sorted(character for character, _ in by_frequency[:limit])
    # Punctuation and Chinese characters are words of their own.
    inner = [c for c in alphabet if len(tokenizer.pre_tokenizer.pre_tokenize_str(f"a{c}")) == 1]
    return alphabet, inner


def load_tokenizer(path: str) -> PreTrainedTokenizerFast:
    """Open a tokenizer by folder or hub name and check that pairs can be built and masked with it.

    Raises UserError when there is none, when it has no Rust backend, or lacks a special token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # transformers raises half a dozen kinds, the hub's client more
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"tokenizer.path={path!r} is no tokenizer that can be opened ({first_line}): write a folder "
            "that holds tokenizer.json, a name on the hub, or null to train one on the corpus"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerBase) or not tokenizer.is_fast:
        raise UserError(
            f"tokenizer.path={path!r} has no fast tokenizer: write one with a tokenizer.json, or null"
        )
    for name in ("mask_token", "pad_token", "cls_token", "sep_token"):
        if getattr(tokenizer, name) is None:
            raise UserError(
                f"tokenizer.path={path!r} has no {name}: add one with tokenizer.add_special_tokens"
                f"({{{name!r}: ...}}) and save it, or write null to train one on the corpus"
            )
    return tokenizer


def plain_backend(tokenizer: PreTrainedTokenizerFast) -> str:
    """The tokenizer as JSON for the preparation's workers: nothing added, padded or truncated."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    return backend.to_str()


def content_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 of all that decides how text becomes token ids."""
    special = sorted((name, str(token)) for name, token in tokenizer.special_tokens_map.items())
    return hashlib.sha256(f"{plain_backend(tokenizer)}{special}".encode()).hexdigest()


def special_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Ids that stand for no text of the corpus, [UNK] among them: never predicted."""
    return sorted(set(tokenizer.all_special_ids))


def replacement_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Ids a masked token may be replaced with: words and pieces of words, nothing special or added,
    no reserved place of BERT's vocabulary such as [unused7]."""
    excluded = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    vocabulary = tokenizer.get_vocab().items()
    return sorted(id for token, id in vocabulary if id not in excluded and not _RESERVED.fullmatch(token))


def continuation_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Ids of pieces that continue a word: WordPiece's ## pieces."""
    return sorted(id for token, id in tokenizer.get_vocab().items() if token.startswith("##"))


def save(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    tokenizer.save_pretrained(str(folder))
