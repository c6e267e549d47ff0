"""Documents to sentences."""

from __future__ import annotations

import sentencex


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
