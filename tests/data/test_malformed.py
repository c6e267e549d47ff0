"""Documents without text: nulls and empty ones are skipped and counted, others stop or are skipped."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nystromformer.cli import main
from nystromformer.data.prepare import prepare
from nystromformer.errors import UserError
from nystromformer.settings import DataSettings, PrepareSettings, TokenizerSettings
from nystromformer.settings.data import SourceSettings

from .conftest import made_up_documents, text_settings


def write(path: Path, *rows: str, documents: int = 40) -> Path:
    """JSON Lines: sound documents with `rows` after the tenth."""
    lines = [json.dumps({"text": text}) for text in made_up_documents(documents)]
    path.write_text("\n".join([*lines[:10], *rows, *lines[10:]]))
    return path


def test_nulls_and_empty_texts_are_skipped_counted_and_placed(tmp_path: Path, capsys):
    path = write(tmp_path / "a.jsonl", '{"text": null}', '{"text": ""}', '{"text": " \\n"}')
    prepared = prepare(text_settings(path, tmp_path / "out"))
    documents = prepared.manifest["report"]["documents"]
    assert documents["dropped"]["empty"] == 3
    assert documents["first_dropped"] == {"empty": f"{path}:11"}
    assert f"3 empty documents skipped, the first at {path}:11" in capsys.readouterr().err
    page = (prepared.folder / "report.html").read_text()
    assert f"3 empty documents skipped, the first at {path}:11" in page
    sound = prepare(text_settings(write(tmp_path / "b.jsonl"), tmp_path / "out"), show_progress=False)
    assert sound.content == prepared.content


@pytest.mark.parametrize(
    "row", ['{"text": 5}', '{"text": ["a", "b"]}', '{"id": 1}', '{"text": "a"', "[]", "NaN", '"text"']
)
def test_a_malformed_row_stops_with_its_place_or_is_skipped_and_counted(tmp_path: Path, row: str):
    path = write(tmp_path / "a.jsonl", row)
    settings = text_settings(path, tmp_path / "out")
    with pytest.raises(UserError) as caught:
        prepare(settings, show_progress=False)
    message = str(caught.value)
    assert message.startswith(f"{path}:11")
    assert message.endswith("or data.malformed_rows=skip to leave such rows out")
    assert "\n" not in message
    settings.data.malformed_rows = "skip"
    prepared = prepare(settings, show_progress=False)
    assert prepared.manifest["report"]["documents"]["dropped"]["malformed"] == 1
    assert prepared.manifest["report"]["documents"]["first_dropped"] == {"malformed": f"{path}:11"}
    sound = prepare(text_settings(write(tmp_path / "b.jsonl"), tmp_path / "out"), show_progress=False)
    assert sound.content == prepared.content


def test_a_wrong_field_is_no_malformed_row(tmp_path: Path):
    path = write(tmp_path / "a.jsonl")
    settings = text_settings(path, tmp_path / "out", text_field="body", malformed_rows="skip")
    with pytest.raises(
        UserError, match=r"a\.jsonl:1 has no field 'body'.*every row of its file is like that"
    ):
        prepare(settings, show_progress=False)


def test_nulls_of_parquet_are_skipped_and_counted(tmp_path: Path):
    pq.write_table(pa.table({"text": [*made_up_documents(30), None, ""]}), tmp_path / "A.PARQUET")
    source = SourceSettings("parquet", [str(tmp_path)])
    data = DataSettings(corpus="mixture", sources=[source], folder=str(tmp_path / "out"), workers=1)
    prepared = prepare(PrepareSettings(data, TokenizerSettings(vocab_size=400), 32), show_progress=False)
    assert prepared.manifest["report"]["documents"]["dropped"]["empty"] == 2
    assert prepared.manifest["report"]["documents"]["first_dropped"]["empty"] == f"{tmp_path}/A.PARQUET:31"


def test_a_repair_makes_the_same_rows(tmp_path: Path, capsys):
    path = write(tmp_path / "a.jsonl", '{"id": 1}')
    prepared = prepare(text_settings(path, tmp_path / "out", malformed_rows="skip"), show_progress=False)
    (prepared.folder / "train" / "00000.arrow").unlink()
    assert main(["prepare", f"repair={prepared.folder}"]) == 0
    prepared.verify()


def test_an_unknown_choice_is_named(tmp_path: Path):
    (complaint,) = DataSettings(malformed_rows="drop").complaints()
    assert complaint == "data.malformed_rows='drop' is unknown: write stop or skip"
