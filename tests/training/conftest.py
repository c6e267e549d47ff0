"""A tiny corpus and the overrides of a run on it that takes seconds."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

_SUBJECTS = ["the old sailor", "my sister", "a tired critic", "the young king", "our neighbour"]
_VERBS = ["watched", "remembered", "repaired", "forgot", "described"]
_OBJECTS = ["a quiet film", "the broken window", "an early train", "the long war", "his last letter"]


def write_corpus(path: Path, documents: int = 60) -> Path:
    """Documents of six sentences, separated by blank lines; the same every time."""
    draw = random.Random(7)
    texts = []
    for number in range(documents):
        sentences = [
            f"{draw.choice(_SUBJECTS).capitalize()} {draw.choice(_VERBS)} {draw.choice(_OBJECTS)}."
            for _ in range(6)
        ]
        texts.append(" ".join([f"This is story number {number}.", *sentences]))
    path.write_text("\n\n".join(texts), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "stories.txt")


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Path:
    """Shared by the runs of a test session, so that the corpus is prepared once."""
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture
def overrides(corpus, prepared, tmp_path) -> list[str]:
    return words_of(corpus, prepared, tmp_path)


def words_of(corpus: Path, prepared: Path, folder: Path) -> list[str]:
    """A tiny run on the corpus, whose runs are below `folder`."""
    return [
        "debug=smoke",
        "data=text",
        f"data.files=[{corpus}]",
        "data.max_documents=null",
        "data.workers=1",
        f"data.folder={prepared}",
        f"runs_folder={folder / 'runs'}",
        "tokenizer.vocab_size=400",
        "training.precision=float32",
    ]
