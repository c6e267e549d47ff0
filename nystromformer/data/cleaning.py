"""The text of a document as it is counted, hashed and split: NFC, no control characters."""

from __future__ import annotations

import re
import unicodedata

_ODD_BYTES = bytes(sorted({*range(0x20), 0x7F} - {ord("\t"), ord("\n")}))
_LINE_BREAK = re.compile("\r\n?|[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f]")


def clean(text: str) -> str:
    """Normalise `text`: cleaning twice is cleaning once.

    Unpaired surrogates, which JSON can carry and UTF-8 cannot, become U+FFFD; every kind of line break
    becomes a newline; other control characters (Unicode's category Cc, but for the tab) are removed; the
    rest is put into normal form C, in which é is one character; white space at the ends is cut.
    """
    if text.isascii() and len(text.encode().translate(None, _ODD_BYTES)) == len(text):
        return text.strip()
    text = without_surrogates(text)
    text = _CONTROL.sub("", _LINE_BREAK.sub("\n", text))
    return unicodedata.normalize("NFC", text).strip()


def without_surrogates(text: str) -> str:
    """Replace unpaired surrogates by U+FFFD; paired ones become the character they stand for."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
