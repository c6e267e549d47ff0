"""Train a tokenizer on a sample of the corpus: WordPiece, Unigram or byte-level BPE.

    wordpiece   BERT's: [PAD] [UNK] [CLS] [SEP] [MASK], pieces inside a word begin with ##
    unigram     SentencePiece's as ALBERT and the published Nyströmformer checkpoints have it:
                <pad> <unk> [CLS] [SEP] [MASK], a word's first piece begins with ▁
    bpe         GPT-2's bytes, so that no text is unknown: a word's first piece begins with Ġ

Each puts two texts together as [CLS] A [SEP] B [SEP]. The same texts give the same vocabulary, id for id,
on any machine: machines that prepare parts of one corpus each train it for themselves.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterable

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from nystromformer.errors import UserError
from nystromformer.settings import TokenizerSettings

BERT_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
ALBERT_TOKENS = BERT_TOKENS | {"pad_token": "<pad>", "unk_token": "<unk>"}
_ALPHABET_LIMIT = 1000  # as BERT's: rarer characters become [UNK]
_UNIGRAM_THREADS = 8  # the order of its sums, and so the vocabulary, follows the number: it is fixed


def train_tokenizer(
    texts: Iterable[str], settings: TokenizerSettings, *, max_length: int
) -> PreTrainedTokenizerFast:
    """Train a tokenizer of `settings.kind` on `texts`. Raises UserError when the texts hold no word."""
    sample = list(texts)
    if not any(map(str.strip, sample)):
        raise UserError("the corpus holds no word to train a tokenizer on: point data at documents with text")
    train: dict[str, Callable[[list[str], TokenizerSettings], Tokenizer]] = {
        "wordpiece": _wordpiece,
        "unigram": _unigram,
        "bpe": _byte_level_bpe,
    }
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
    # A character costs up to two entries; half of a small vocabulary is left for words.
    alphabet, inner = _alphabet(texts, tokenizer, limit=min(_ALPHABET_LIMIT, settings.vocab_size // 4))
    if not alphabet:
        raise UserError("the corpus holds no word to train a tokenizer on: point data at documents with text")
    special = list(BERT_TOKENS.values())
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


def _unigram(texts: list[str], settings: TokenizerSettings) -> Tokenizer:
    # SentencePiece's own trainer: that of `tokenizers` gives other scores in each run.
    import sentencepiece

    normalizer = _albert_normalizer(settings.lowercase)
    lines = [line for text in texts for line in map(normalizer.normalize_str, text.splitlines()) if line]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="unigram",
        vocab_size=settings.vocab_size,
        hard_vocab_limit=False,  # a small corpus gives a smaller vocabulary instead of an error
        normalization_rule_name="identity",
        character_coverage=_coverage(lines, limit=min(_ALPHABET_LIMIT, settings.vocab_size // 4)),
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


def _coverage(lines: list[str], limit: int) -> float:
    """The share of the text in its `limit` most frequent characters, at most ALBERT's 0.9995."""
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update(line)
    covered = sum(count for _, count in counts.most_common(limit))
    return min(covered / counts.total(), 0.9995)


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
