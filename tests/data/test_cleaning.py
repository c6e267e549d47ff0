import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nystromformer.data import documents
from nystromformer.data.documents import clean, without_surrogates

ANY_TEXT = st.text(st.characters() | st.sampled_from("\ud800\udc00\u0301\x00\x85\u2028\r\n\t e"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" plain\ttext \n", "plain\ttext"),
        ("a\x00b\x7fc", "abc"),
        ("one\r\ntwo\rthree\x0bfour\u2028five", "one\ntwo\nthree\nfour\nfive"),
        ("cafe\u0301", "café"),
        ("é\x85\x9f", "é"),
        ("a\ud800b", "a\ufffdb"),
        ("\x00 \x01", ""),
        ("\N{FAMILY}\u200d\N{ARABIC LETTER ALEF}", "\N{FAMILY}\u200d\N{ARABIC LETTER ALEF}"),
    ],
)
def test_cleaned(text: str, expected: str):
    assert clean(text) == expected


@given(ANY_TEXT)
def test_cleaning_twice_is_cleaning_once_and_leaves_utf8_in_nfc(text: str):
    cleaned = clean(text)
    assert clean(cleaned) == cleaned
    assert cleaned.encode().decode() == cleaned
    assert unicodedata.is_normalized("NFC", cleaned)
    assert not any(unicodedata.category(c) == "Cc" for c in cleaned.replace("\n", "").replace("\t", ""))


@given(ANY_TEXT | st.text(st.sampled_from([*map(chr, range(0xA1)), "\u2028", "\u2029", "\ufeff", "汉"])))
def test_what_is_passed_over_holds_nothing_to_replace(text: str):
    text = without_surrogates(text)
    replaced = documents._CONTROL.sub("", documents._LINE_BREAK.sub("\n", text))
    assert documents._has_odd(text) == (replaced != text)
    assert clean(text) == unicodedata.normalize("NFC", replaced).strip()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("\udc00", "\ufffd"), ("\ud83d\ude00", "\N{GRINNING FACE}"), ("plain", "plain")],
)
def test_unpaired_surrogates_are_replaced_and_paired_ones_joined(text: str, expected: str):
    assert without_surrogates(text) == expected
