from pathlib import Path

import pytest

from nystromformer.data.corpora import open_corpus
from nystromformer.data.documents import text_hash, validation_below
from nystromformer.data.reading import survey
from nystromformer.errors import UserError

from .conftest import made_up_documents, text_settings

DOCUMENTS = made_up_documents(200)


@pytest.fixture
def corpus_path(tmp_path: Path) -> Path:
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(DOCUMENTS))
    return path


def test_the_sample_is_spread_over_the_corpus_and_bounded(corpus_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = text_settings(corpus_path, corpus_path.parent)
    corpus = open_corpus(settings.data)
    monkeypatch.setattr("nystromformer.data.reading._MEGABYTE", 30_000)
    settings.tokenizer.sample_megabytes = 1
    found, sample = survey(corpus, settings, sample=True, show_progress=False)
    assert found.bytes == sum(map(len, DOCUMENTS))
    assert found.validation_below == validation_below(0.1)
    assert 0.8 * 30_000 < sum(map(len, sample)) <= 30_000
    numbers = sorted(DOCUMENTS.index(text) for text in sample)
    assert all(text_hash(text) >= found.validation_below for text in sample)
    # Of each quarter of the corpus there is something.
    assert {number // 50 for number in numbers} == {0, 1, 2, 3}


def test_a_fixed_number_of_validation_documents(corpus_path: Path):
    settings = text_settings(corpus_path, corpus_path.parent, validation_documents=17)
    found, _ = survey(open_corpus(settings.data), settings, sample=False, show_progress=False)
    assert sum(text_hash(text) < found.validation_below for text in DOCUMENTS) == 17
    settings.data.validation_documents = 200
    with pytest.raises(UserError, match="the corpus has 200 different documents"):
        survey(open_corpus(settings.data), settings, sample=False, show_progress=False)
