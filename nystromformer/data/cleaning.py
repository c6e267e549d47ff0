"""The text of a document as it is counted, hashed and split: NFC, no control characters."""

from __future__ import annotations

import re
import unicodedata

_ODD_BYTES = bytes(sorted({*range(0x20), 0x7F} - {ord("\t"), ord("\n")}))
_LINE_BREAK = re.compile("\r\n?|[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_ODD_OF_TWO_BYTES = re.compile(rb"\xc2[\x80-\x9f]")  # U+0080 to U+009F in UTF-8
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f]")


def clean(text: str) -> str:
    """Normalise `text`: cleaning twice is cleaning once.

    Unpaired surrogates, which JSON can carry and UTF-8 cannot, become U+FFFD; every kind of line break
    becomes a newline; other control characters (Unicode's category Cc, but for the tab) are removed; the
    rest is put into normal form C, in which é is one character; white space at the ends is cut.
    """
    text = without_surrogates(text)
    if _has_odd(text):
        text = _CONTROL.sub("", _LINE_BREAK.sub("\n", text))
    return (text if text.isascii() else unicodedata.normalize("NFC", text)).strip()


def _has_odd(text: str) -> bool:
    """Whether it holds a control character or a line break other than the newline: found at a GB/s, where
    the expressions that replace them need six times as long."""
    encoded = text.encode()
    if len(encoded.translate(None, _ODD_BYTES)) < len(encoded):
        return True
    if text.isascii():
        return False
    return bool(_ODD_OF_TWO_BYTES.search(encoded)) or "\u2028" in text or "\u2029" in text


def without_surrogates(text: str) -> str:
    """Replace unpaired surrogates by U+FFFD; paired ones become the character they stand for."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
