"""A tokenizer that exists: opened, known by its content, and what its ids mean to masking.

Training one is in `tokenizer_training`.
"""

from __future__ import annotations

import hashlib
import json
import re

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from nystromformer.errors import UserError

_RESERVED = re.compile(r"\[unused\d+\]")


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
    """Ids of pieces that continue the word before them; every other piece begins one.

    WordPiece marks the pieces inside a word (##). SentencePiece (▁) and byte-level BPE (Ġ) mark those that
    follow a space instead; of the others, letters and digits continue a word, and punctuation is a word of
    its own, as in ALBERT.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    special = set(tokenizer.all_special_ids)
    if (prefix := backend["model"].get("continuing_subword_prefix")) is not None and prefix:
        continues = lambda token: token.startswith(prefix)  # noqa: E731
    elif mark := _space_mark(json.dumps(backend["pre_tokenizer"])):
        continues = lambda token: not token.startswith(mark) and _is_inside_word(token)  # noqa: E731
    else:
        return []
    return sorted(id for token, id in tokenizer.get_vocab().items() if id not in special and continues(token))


def _space_mark(pre_tokenizer: str) -> str | None:
    """What stands for the space before a word."""
    if '"Metaspace"' in pre_tokenizer:
        return "▁"
    return "Ġ" if '"ByteLevel"' in pre_tokenizer else None


def _is_inside_word(token: str) -> bool:
    # Byte-level BPE writes the bytes of other letters as other characters beyond ASCII.
    return bool(token) and (token[0].isalnum() or not token[0].isascii())
