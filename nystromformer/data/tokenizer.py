"""A tokenizer: opened or trained on a sample of the corpus, known by its content, and what its ids mean to
masking.

    wordpiece   BERT's: [PAD] [UNK] [CLS] [SEP] [MASK], pieces inside a word begin with ##
    unigram     SentencePiece's as ALBERT and the published Nyströmformer checkpoints have it:
                <pad> <unk> [CLS] [SEP] [MASK], a word's first piece begins with ▁
    bpe         GPT-2's bytes, so that no text is unknown: a word's first piece begins with Ġ

Each puts two texts together as [CLS] A [SEP] B [SEP]. The same texts give the same vocabulary, id for id,
on any machine: machines that prepare parts of one corpus each train it for themselves.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from nystromformer.errors import UserError
from nystromformer.hub import opened_tokenizer
from nystromformer.settings import TokenizerSettings

_RESERVED = re.compile(r"\[unused\d+\]")


def load_tokenizer(path: str) -> PreTrainedTokenizerFast:
    """Open a tokenizer by folder or hub name and check that pairs can be built and masked with it.

    Raises UserError when there is none, when it has no Rust backend, or lacks a special token.
    """
    tokenizer = opened_tokenizer(
        path,
        f"tokenizer.path={path!r} is no tokenizer that can be opened",
        "write a folder that holds tokenizer.json, a name on the hub, or null to train one on the corpus",
    )
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


# --- training one -------------------------------------------------------------------------------------

BERT_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
ALBERT_TOKENS = BERT_TOKENS | {"pad_token": "<pad>", "unk_token": "<unk>"}
_NO_WORD = "the corpus holds no word to train a tokenizer on: point data at documents with text"
_ALPHABET = 1000  # as BERT's: so many characters are in it however little of the text the rarest are
_UNIGRAM_THREADS = 8  # the order of its sums, and so the vocabulary, follows the number: it is fixed


def train_tokenizer(
    texts: Iterable[str], settings: TokenizerSettings, *, max_length: int
) -> PreTrainedTokenizerFast:
    """Train a tokenizer of `settings.kind` on `texts`. Raises UserError when the texts hold no word."""
    sample = list(texts)
    if not any(map(str.strip, sample)):
        raise UserError(_NO_WORD)
    train = {"wordpiece": _wordpiece, "unigram": _unigram, "bpe": _byte_level_bpe}
    tokenizer = train[settings.kind](sample, settings)
    special = special_tokens(settings.kind)
    ids = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **special,
    )


def special_tokens(kind: str) -> dict[str, str]:
    """The special tokens in the order of their ids, by the name transformers has for each."""
    return ALBERT_TOKENS if kind == "unigram" else BERT_TOKENS


def _wordpiece(texts: list[str], settings: TokenizerSettings) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=settings.lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()

    def is_inner(character: str) -> bool:
        # Punctuation and Chinese characters are words of their own; the others need a ## piece too.
        word = tokenizer.normalizer.normalize_str(f"a{character}")
        return len(tokenizer.pre_tokenizer.pre_tokenize_str(word)) == 1

    special = list(BERT_TOKENS.values())
    alphabet = _alphabet(
        map(tokenizer.normalizer.normalize_str, texts),
        settings,
        pieces_of=lambda character: 1 + is_inner(character),
        reserved=len(special),
    )
    inner = [character for character in alphabet if is_inner(character)]
    # The trainer numbers the inner characters ("##a") in the order of a hash map, which differs from
    # run to run and decides between pairs of equal frequency. Naming them all beforehand fixes it.
    reserved = [*special, *("##" + character for character in inner)]
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
    return trained


def _alphabet(
    texts: Iterable[str],
    settings: TokenizerSettings,
    *,
    pieces_of: Callable[[str], int],
    reserved: int,
) -> list[str]:
    """The characters that get pieces of their own, sorted; every other one is unknown.

    The most frequent ones that make up `character_coverage` of the text are needed. Rarer ones join them
    up to a thousand in all, as long as half of the vocabulary is left for words.

    Args:
        texts: normalized.
        pieces_of: how many pieces a character takes.
        reserved: pieces that are no characters.

    Raises:
        UserError: the texts hold no character, or the vocabulary cannot hold those that are needed.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    visible = ((character, count) for character, count in counts.items() if not character.isspace())
    by_frequency = sorted(visible, key=lambda item: (-item[1], item[0]))
    if not by_frequency:
        raise UserError(_NO_WORD)
    total = sum(count for _, count in by_frequency)
    room = settings.vocab_size - reserved
    alphabet: list[str] = []
    covered = pieces = fitting = needed = 0
    for character, count in by_frequency:
        is_needed = covered < settings.character_coverage * total
        takes = pieces_of(character)
        if not is_needed and (len(alphabet) >= _ALPHABET or pieces + takes > settings.vocab_size // 2):
            break
        alphabet.append(character)
        pieces += takes
        covered += count
        needed += is_needed
        fitting = covered if pieces <= room else fitting
    if fitting < covered:
        raise UserError(_too_small(settings, needed, pieces + reserved, fitting / total))
    return sorted(alphabet)


def _too_small(settings: TokenizerSettings, characters: int, pieces: int, fitting: float) -> str:
    least = math.floor(fitting * 10_000) / 10_000
    return (
        f"tokenizer.vocab_size={settings.vocab_size} is smaller than the alphabet: the {characters:,} "
        f"characters that make up {settings.character_coverage:.2%} of the text take {pieces:,} pieces; "
        f"write tokenizer.vocab_size={2 * pieces}, at least {pieces}, or "
        f"tokenizer.character_coverage={least:g}, with which the rarest become unknown, or tokenizer=bpe, "
        "which knows every character"
    )


def _unigram(texts: list[str], settings: TokenizerSettings) -> Tokenizer:
    # SentencePiece's own trainer: that of `tokenizers` gives other scores in each run.
    import sentencepiece

    normalizer = _albert_normalizer(settings.lowercase)
    lines = [line for text in texts for line in map(normalizer.normalize_str, text.splitlines()) if line]
    special = list(ALBERT_TOKENS.values())
    # The mark of a space is a piece too.
    alphabet = _alphabet(lines, settings, pieces_of=lambda _: 1, reserved=len(special) + 1)
    lines = _within(alphabet, lines)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="unigram",
        vocab_size=settings.vocab_size,
        hard_vocab_limit=False,  # a small corpus gives a smaller vocabulary instead of an error
        normalization_rule_name="identity",
        character_coverage=1.0,  # of what `_within` left
        max_sentence_length=2**30,  # longer ones would be left out in silence
        num_threads=_UNIGRAM_THREADS,
        pad_id=0,
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        pad_piece="<pad>",
        unk_piece="<unk>",
        control_symbols=["[CLS]", "[SEP]", "[MASK]"],
        minloglevel=2,  # it reports every step otherwise
    )
    trained = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ids = range(trained.get_piece_size())
    vocabulary = [(trained.id_to_piece(id), trained.get_score(id)) for id in ids]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=1))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def _within(alphabet: list[str], lines: list[str]) -> list[str]:
    """The lines with a space for every character that is not in the alphabet."""
    other = re.compile(f"[^{''.join(map(re.escape, alphabet))}\\s]+")
    within = (other.sub(" ", line) for line in lines)
    return [line for line in within if line.strip()]


def _albert_normalizer(lowercase: bool) -> normalizers.Normalizer:
    """What transformers makes of ALBERT's SentencePiece model, with NFKC for its table of characters."""
    steps: list[normalizers.Normalizer] = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if lowercase:
        steps += [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    steps += [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    return normalizers.Sequence(steps)


def _byte_level_bpe(texts: list[str], settings: TokenizerSettings) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase() if settings.lowercase else normalizers.NFC()
    # A sentence's first word begins with a space too: it is the same word there.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size,
        min_frequency=settings.min_frequency,
        special_tokens=list(BERT_TOKENS.values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
