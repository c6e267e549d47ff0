"""No document, however odd, makes the preparation crash or costs its neighbours a token."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nystromformer.data import preparation_report
from nystromformer.data.prepare import prepare
from nystromformer.data.storage import PreparedData
from nystromformer.settings import TokenizerSettings

from .conftest import made_up_documents, text_settings

NEIGHBOURS = made_up_documents(6, seed=7)
ODD = st.one_of(
    st.text(st.characters() | st.sampled_from(" .\n!?[]\ud800\udfff\u2028\x00\u202e\u05d0\u0627😀\u0301")),
    st.sampled_from(["", " ", "one", "\x00", "\ud800", "a" * 5000, "😀" * 300, "[MASK] [SEP].", ". . . ."]),
    st.text(st.sampled_from("אבגد هو.؟ \u202b"), max_size=50),
)


@pytest.fixture(scope="module")
def neighbours(prepared: PreparedData) -> list[list[int]]:
    """The tokens that each ordinary document has, up to what a lone last sentence costs it."""
    tokenizer = prepared.tokenizer()
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in NEIGHBOURS]


def prepare_rows(prepared: PreparedData, folder: Path, rows: list[str]) -> PreparedData:
    folder.mkdir(exist_ok=True)
    path = folder / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in rows))
    wanted = text_settings(path, folder / "out", shard_megabytes=0.01)
    wanted.tokenizer = TokenizerSettings(path=str(prepared.folder / "tokenizer"))
    return prepare(wanted, show_progress=False)


def all_tokens(data: PreparedData) -> str:
    """Every stored token in order, as a string in which a document's can be looked for."""
    chunks = [data.split(split) for split in ("train", "validation")]
    tokens = np.concatenate([split[i][0] for split in chunks for i in range(len(split))])
    return " " + " ".join(map(str, tokens.tolist())) + " "


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ODD, min_size=6, max_size=6))
def test_never_a_lost_neighbour(
    prepared: PreparedData,
    neighbours: list[list[int]],
    tmp_path_factory: pytest.TempPathFactory,
    odd: list[str],
):
    rows = [text for pair in zip(odd, NEIGHBOURS, strict=True) for text in pair]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation_report, "draw", lambda report: b"")
        data = prepare_rows(prepared, tmp_path_factory.mktemp("odd"), rows)
    report = data.manifest["report"]
    dropped = report["documents"]["dropped"]
    assert report["documents"]["read"] == 12
    assert report["documents"]["usable"] + sum(dropped.values()) == 12
    stored = all_tokens(data)
    for tokens in neighbours:
        # All but a last sentence left alone, which is at most a chunk.
        kept = tokens[: max(len(tokens) - 61, 1)]
        assert " " + " ".join(map(str, kept)) + " " in stored


def test_a_line_of_a_megabyte(prepared: PreparedData, neighbours: list[list[int]], tmp_path: Path):
    for number, line in enumerate(("x" * 2**20, "ab cd. " * 150_000, "\u05d0" * 2**19)):
        data = prepare_rows(prepared, tmp_path / str(number), [NEIGHBOURS[0], line, *NEIGHBOURS[1:]])
        stored = all_tokens(data)
        assert all(" ".join(map(str, tokens[:-61])) in stored for tokens in neighbours)
        assert data.manifest["report"]["documents"]["read"] == 7
