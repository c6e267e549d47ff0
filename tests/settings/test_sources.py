"""Mistakes in an entry of data.sources, and how --help writes one."""

import pytest

from nystromformer.errors import UserError
from nystromformer.settings.compose import compose
from nystromformer.settings.data import SourceSettings
from nystromformer.settings.mistakes import as_written


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("{knd:text}", "knd is no setting of a source: did you mean kind?"),
        ("{kind:txt}", "data.sources[0].kind='txt' is unknown: write one of text, jsonl"),
        ("{kind:text}", "data.sources[0].files is empty"),
        ("{kind:hub}", "data.sources[0].repository is empty"),
        ("{files:[a],weight:-1}", "data.sources[0].weight=-1.0 is impossible"),
        ("{files:[a],weight:two}", "could not be converted to Float: write entries such as {kind:text"),
        ("{files:[a],max_documents:0}", "data.sources[0].max_documents=0 is too small"),
    ],
)
def test_a_mistake_is_one_line(entry: str, expected: str):
    with pytest.raises(UserError) as caught:
        compose("prepare", ["data=mixture", f"data.sources=[{entry}]"])
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sources_belong_to_a_mixture():
    with pytest.raises(UserError, match="read by data=mixture only"):
        compose("prepare", ["data=imdb", "data.sources=[{files:[a]}]"])
    with pytest.raises(UserError, match=r"data\.sources is empty"):
        compose("prepare", ["data=mixture"])


def test_an_entry_is_shown_as_it_is_written():
    source = SourceSettings("wikipedia", weight=0.5, files=["a", "b"])
    assert as_written([source]) == "[{kind:wikipedia,files:[a,b],weight:0.5}]"
