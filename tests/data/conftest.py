"""A small prepared corpus, made once: made-up documents, so that the tests need no data and no network."""

import random
from pathlib import Path

import pytest

from nystromformer.data.prepare import prepare
from nystromformer.data.storage import PreparedData
from nystromformer.settings import DataSettings, PrepareSettings, TokenizerSettings


def made_up_documents(count: int, seed: int = 0) -> list[str]:
    """Documents of 2 to 30 sentences of made-up words, a few to a paragraph."""
    draw = random.Random(seed)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(600)]
    documents = []
    for _ in range(count):
        sentences = [
            " ".join(draw.choices(words, k=draw.randint(2, 25))).capitalize() + draw.choice([".", "!", "?"])
            for _ in range(draw.randint(2, 30))
        ]
        documents.append("\n".join(" ".join(sentences[i : i + 5]) for i in range(0, len(sentences), 5)))
    return documents


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "made_up.txt"
    path.write_text("\n\n".join(made_up_documents(400)), encoding="utf-8")
    return path


def text_settings(file: Path | str, folder: Path, **changes: object) -> PrepareSettings:
    """Settings that prepare `file` in this process; `changes` are those of DataSettings."""
    values: dict[str, object] = {
        "corpus": "text",
        "files": [str(file)],
        "folder": str(folder),
        "workers": 1,
        "validation_fraction": 0.1,
        **changes,
    }
    data = DataSettings(**values)  # type: ignore[arg-type]
    return PrepareSettings(data, TokenizerSettings(vocab_size=500), max_length=64)


@pytest.fixture(scope="session")
def prepared(corpus_file: Path, tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    folder = tmp_path_factory.mktemp("prepared")
    return prepare(text_settings(corpus_file, folder), show_progress=False)
