"""The training and the validation split."""

from __future__ import annotations

from dataclasses import dataclass

SPLITS = ("train", "validation")


@dataclass(frozen=True)
class SplitRule:
    """Sends a document, known by the hash of its text, to one of the splits.

    So a document is in one split whole, the same in any run, and two corpora that share a document
    agree on it.
    """

    validation_below: int
    """Documents of hashes below it are validation's."""
    moved: int | None = None
    """A document that is sent to the other split, so that no split of a tiny corpus stays empty."""

    def of(self, document_hash: int) -> str:
        validation = (document_hash < self.validation_below) != (document_hash == self.moved)
        return "validation" if validation else "train"
