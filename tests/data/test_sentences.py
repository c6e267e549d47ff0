import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nystromformer.data.segmentation import split_sentences


def test_abbreviations_do_not_end_a_sentence_and_paragraphs_do():
    text = "Mr. Smith went home. He slept!\nNobody knew"
    assert split_sentences(text) == ["Mr. Smith went home.", "He slept!", "Nobody knew"]


@pytest.mark.parametrize("text", ["", " ", "\n\n\r\n", "\t\n \u2028"])
def test_nothing_gives_no_sentence(text: str):
    assert split_sentences(text) == []


@pytest.mark.parametrize("text", ["a" * 10**6, "\N{GRINNING FACE}" * 10**5, "(" * 10**5, '"(. ' * 25_000])
def test_strange_long_lines_take_no_long_time(text: str):
    start = time.perf_counter()
    assert "".join("".join(split_sentences(text)).split()) == "".join(text.split())
    assert time.perf_counter() - start < 5


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=300))
def test_no_character_is_lost_but_white_space(text: str):
    assert "".join("".join(split_sentences(text)).split()) == "".join(text.split())
