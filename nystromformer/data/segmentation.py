"""Documents to sentences, and sentences to the unit that is stored: chunks of whole ones.

The semantics are ALBERT's (`create_pretraining_data.py`), with the masking left to load time:

- A chunk aims at `max_length - 3` tokens, which leaves room for [CLS] A [SEP] B [SEP]. With
  probability `short_sequence_probability` it aims at a random shorter length instead.
- A sentence joins the chunk if it fits. If it does not, a chunk of two sentences or more is closed;
  a chunk of one takes it all the same, because a pair needs two. The overshoot is stored and cut
  at load time, at another place in each epoch.
- A sentence too long for any chunk is first cut into pieces, which then count as sentences.
- A document's last sentence, left alone, has nothing to be paired with: it is dropped and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import chain

import numpy as np
import sentencex
from numpy.typing import NDArray

from nystromformer.data import stateless_random as random


def split_sentences(text: str, language: str = "en") -> list[str]:
    """Split `text` into sentences, stripped and not empty, in order.

    A line is a paragraph and no sentence crosses its end. Within a paragraph sentencex decides,
    with the abbreviations of `language` (an ISO 639 code; an unknown one falls back to English).
    """
    sentences = []
    for paragraph in text.splitlines():
        if paragraph and not paragraph.isspace():
            for sentence in sentencex.segment(language, paragraph):
                sentence = sentence.strip()
                if sentence:
                    sentences.append(sentence)
    return sentences


# --- chunks -------------------------------------------------------------------------------------------

SPECIAL_TOKENS_OF_A_PAIR = 3  # [CLS] A [SEP] B [SEP]
SPECIAL_TOKENS_OF_A_SEGMENT = 2  # [CLS] A [SEP]


@dataclass
class Counts:
    """What one split of a prepared corpus holds and what was left out of it."""

    documents: int = 0
    """Documents that gave at least one chunk."""
    sentences: int = 0
    """Stored sentences, pieces of cut ones included."""
    tokens: int = 0
    """Stored tokens, without special ones."""
    chunks: int = 0
    cut_sentences: int = 0
    """Sentences longer than a chunk, cut into pieces."""
    dropped_documents: int = 0
    """Documents with fewer than two sentences."""
    dropped_sentences: int = 0
    """Sentences that were left alone at the end of a document, in these and in other documents."""
    dropped_tokens: int = 0
    """The tokens of the dropped sentences."""

    def add(self, other: Counts) -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


@dataclass(frozen=True)
class Chunks:
    """Ragged rows, flat: chunk i owns the next `chunk_sentences[i]` entries of `sentence_lengths`,
    and sentence j the next `sentence_lengths[j]` entries of `tokens`."""

    tokens: NDArray[np.int32]
    sentence_lengths: NDArray[np.int32]
    chunk_sentences: NDArray[np.int32]

    @classmethod
    def concatenate(cls, parts: Sequence[Chunks]) -> Chunks:
        empty = np.empty(0, np.int32)
        return cls(
            np.concatenate([empty, *(part.tokens for part in parts)]),
            np.concatenate([empty, *(part.sentence_lengths for part in parts)]),
            np.concatenate([empty, *(part.chunk_sentences for part in parts)]),
        )

    def __len__(self) -> int:
        return len(self.chunk_sentences)


@dataclass(frozen=True)
class Segmentation:
    """Cuts documents into chunks; a pure function of the document and of these settings."""

    max_length: int
    short_sequence_probability: float
    seed: int

    @property
    def full_target(self) -> int:
        return self.max_length - SPECIAL_TOKENS_OF_A_PAIR

    def chunk(self, sentences: Sequence[Sequence[int]], document_hash: int) -> tuple[Chunks, Counts]:
        """Cut one document, given as its sentences' token ids, into chunks.

        No tokens are lost but those that `Counts.dropped_tokens` tells.
        """
        lengths, cut = self._cut_long_sentences([len(sentence) for sentence in sentences if sentence])
        chunk_sentences = self._sentences_per_chunk(lengths, document_hash)
        tokens = np.fromiter(chain.from_iterable(sentences), np.int32, sum(lengths))
        kept = sum(chunk_sentences)
        kept_tokens = sum(lengths[:kept])
        counts = Counts(
            documents=int(kept > 0),
            sentences=kept,
            tokens=kept_tokens,
            chunks=len(chunk_sentences),
            cut_sentences=cut,
            dropped_documents=int(kept == 0),
            dropped_sentences=len(lengths) - kept,
            dropped_tokens=len(tokens) - kept_tokens,
        )
        chunks = Chunks(
            tokens[:kept_tokens],
            np.asarray(lengths[:kept], np.int32),
            np.asarray(chunk_sentences, np.int32),
        )
        return chunks, counts

    def _cut_long_sentences(self, lengths: list[int]) -> tuple[list[int], int]:
        """Replace each length beyond a chunk by near-equal pieces of at most half a chunk."""
        if not lengths or max(lengths) <= self.full_target:
            return lengths, 0
        largest_piece = self.full_target // 2
        pieces: list[int] = []
        cut = 0
        for length in lengths:
            if length <= self.full_target:
                pieces.append(length)
                continue
            cut += 1
            count = -(-length // largest_piece)
            pieces.extend(length * (i + 1) // count - length * i // count for i in range(count))
        return pieces, cut

    def _sentences_per_chunk(self, lengths: Sequence[int], document_hash: int) -> list[int]:
        """Number of sentences in each chunk; their sum is one less than given if one was left alone."""
        chunks: list[int] = []
        targets = self._targets(document_hash, (len(lengths) + 1) // 2)
        in_chunk = tokens = 0
        for length in lengths:
            if in_chunk >= 2 and tokens + length > targets[len(chunks)]:
                chunks.append(in_chunk)
                in_chunk = tokens = 0
            in_chunk += 1
            tokens += length
        if in_chunk >= 2:
            chunks.append(in_chunk)
        return chunks

    def _targets(self, document_hash: int, count: int) -> list[int]:
        """What the document's chunks aim at, from (seed, document, number of the chunk)."""
        numbers = np.arange(count + 1)
        key = random.mix(random.mix(self.seed) ^ np.uint64(document_hash))
        keys = random.mix(key ^ numbers.astype(np.uint64))
        is_short = random.uniform(random.bits(keys, random.Stream.CHUNK_LENGTH))
        short = 2 + random.below(random.mix(keys), self.full_target - 1)
        return np.where(is_short < self.short_sequence_probability, short, self.full_target).tolist()
