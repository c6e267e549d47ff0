"""Tables as people and programs write them: read whole, or refused in one line with file and line."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma

import pandas
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nystromformer.data.documents import clean
from nystromformer.data.text_files import Line
from nystromformer.errors import UserError
from nystromformer.settings.finetune import SEPARATORS
from nystromformer.tasks.row_files import Asked, Unusable
from nystromformer.tasks.table_files import TableFile, records, written

SEVERAL = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# Of a line that is mostly NULs it is told that it is no text.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20) | st.text(
    "\"'\\,;\t|\n\r x", max_size=8
)
ROWS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5)


def put(folder, name: str, content: str | bytes):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def table(path, columns, *, headless=(), **how) -> TableFile:
    return TableFile(Asked(path, **how), columns, headless=headless)


def texts(path, columns=("text", "label"), **how) -> list[tuple[str, ...]]:
    """All rows, by the columns asked for."""
    return [tuple(row.text(column) for column in columns) for row in table(path, columns, **how).rows()]


def complaint(path, columns=("text", "label"), **how) -> str:
    with pytest.raises(UserError) as caught:
        texts(path, columns, **how)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


# --- what others write --------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", SEPARATORS)
@given(rows=ROWS)
@SEVERAL
def test_what_pandas_writes_is_read(separator, rows, tmp_path):
    table = pandas.DataFrame(rows, columns=["text", "label"])
    path = tmp_path / "a.csv"
    table.to_csv(
        path, sep=SEPARATORS[separator], quoting=csv.QUOTE_ALL
    )  # the index has a column without name
    expected = [(clean(text), clean(label)) for text, label in rows]
    assert texts(path, separator=separator, quotes=True) == expected
    if not any("\r" in cell for row in rows for cell in row):  # which pandas itself leaves unquoted
        table.to_csv(path, sep=SEPARATORS[separator], index=False)
        assert texts(path, separator=separator, quotes=True) == expected


@given(rows=ROWS)
@SEVERAL
def test_json_lines_of_pandas_are_read(rows, tmp_path):
    path = tmp_path / "a.jsonl"
    pandas.DataFrame(rows, columns=["text", "label"]).to_json(path, orient="records", lines=True)
    assert texts(path) == [(clean(text), clean(label)) for text, label in rows]


@given(rows=ROWS, separator=st.sampled_from(list(SEPARATORS)))
@SEVERAL
def test_what_is_written_is_read_by_pandas_and_here(rows, separator, tmp_path):
    path = put(tmp_path, "a.csv", written([("text", "label"), *rows], SEPARATORS[separator]))
    read = pandas.read_csv(path, sep=SEPARATORS[separator], dtype=str, keep_default_na=False)
    assert read.values.tolist() == [list(row) for row in rows]
    assert texts(path, separator=separator, quotes=True) == [
        (clean(text), clean(label)) for text, label in rows
    ]


def test_a_nul_in_a_text_and_carriage_returns_before_a_line_break_are_kept(tmp_path):
    rows = [("a text of some length with \0 in it", "a"), ("0\r\r\n0", "b")]
    path = put(tmp_path, "a.tsv", written([("text", "label"), *rows]))
    assert texts(path) == [(clean(text), label) for text, label in rows]


def test_quotes_are_gone_from_a_tsv_file_and_a_cell_may_have_lines(tmp_path):
    path = put(tmp_path, "a.tsv", 'text\tlabel\n"say ""no""\tor\nyes"\ta\nb "c" d\te\n')
    assert texts(path) == [('say "no"\tor\nyes', "a"), ('b "c" d', "e")]


def test_a_chapter_in_a_cell(tmp_path):
    chapter = 'He said "no", and went on. ' * 10_000
    path = tmp_path / "a.csv"
    pandas.DataFrame({"text": [chapter, "short"], "label": ["a", "b"]}).to_csv(path, index=False)
    assert len(chapter) > 2 * 131_072
    assert texts(path) == [(chapter.strip(), "a"), ("short", "b")]


PLAIN = 'text,label\n"one, two",a\nthree,b\n'
ROWS_OF_PLAIN = [("one, two", "a"), ("three", "b")]


GUISES: dict[str, bytes] = {
    "byte-order mark": b"\xef\xbb\xbf" + PLAIN.encode(),
    "CRLF": PLAIN.replace("\n", "\r\n").encode(),
    "old Mac": PLAIN.replace("\n", "\r").encode(),
    "no last line end": PLAIN.strip().encode(),
    "blank lines": PLAIN.replace("\n", "\n\n").encode(),
    "NUL bytes here and there": PLAIN.replace("three", "thr\0ee").encode(),
    "spaces after separators": b'text, label\n"one, two", a\nthree, "b"\n',
    "quoted header": b'"text", "label"\n"one, two",a\nthree,b\n',
    "separator at every line's end": b'text,label,\n"one, two",a,\nthree,b,\n',
    "separator at the rows' ends": b'text,label\n"one, two",a,,\nthree,b,\n',
    "a column without name before": b',text,label\n0,"one, two",a\n1,three,b\n',
    "a column of another name twice": b'id,text,id,label\n0,"one, two",1,a\n1,three,1,b\n',
}


@pytest.mark.parametrize("guise", GUISES)
def test_the_same_rows_in_every_guise(guise, tmp_path):
    assert texts(put(tmp_path, "a.csv", GUISES[guise])) == ROWS_OF_PLAIN


COMPRESSED = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda content: pa.Codec("zstd").compress(content, asbytes=True),
}


@pytest.mark.parametrize("ending", COMPRESSED)
def test_compressed_files_and_endings_in_capitals(ending, tmp_path):
    content = COMPRESSED[ending](PLAIN.encode())
    for name in (f"a.csv.{ending}", f"a.CSV.{ending.upper()}"):
        assert texts(put(tmp_path, name, content)) == ROWS_OF_PLAIN
    assert texts(put(tmp_path, "b.TSV", "text\tlabel\nx\ty\n")) == [("x", "y")]
    assert texts(put(tmp_path, "c.JsonL", '{"text": "x", "label": "y"}')) == [("x", "y")]


def test_rows_are_named_by_the_line_on_which_they_begin(tmp_path):
    path = put(tmp_path, "a.csv", 'text,label\n\n"a\nb\n\nc",x\r\n"d\n",y\ne,z\n')
    assert [row.line for row in table(path, ["text"]).rows()] == [3, 7, 9]


# --- what is refused ----------------------------------------------------------------------------------


REFUSED = {
    "two columns of one name": (
        "a.csv",
        "text,kind,text\na,b,c\n",
        "columns 1 and 3 of its header are called 'text'",
    ),
    "but for spaces": ("a.csv", "text,kind, text \na,b,c\n", "columns 1 and 3 of its header"),
    "three of one name": ("a.tsv", 'k\ttext\tx\t"text"\ttext\n', "columns 2, 4 and 5 of its header"),
    "a JSON name twice": (
        "a.jsonl",
        '{"text": "a"}\n{"text": "a", "text": "b"}',
        "line 2 is malformed ('text' stands in",
    ),
    "blank lines only": ("a.csv", "\n \n", "has no header: name its columns in the first line"),
    "a byte-order mark only": ("a.csv", "\ufeff", "has no header"),
    "separators only": ("a.csv", ",,\na,b,c\n", "has no header"),
    "too many cells": (
        "a.csv",
        "text\na\n\nb,c\n",
        "line 4 is malformed (2 columns, where there",
    ),
    "too few cells": (
        "a.csv",
        "text,x\na,1\nb\n",
        "line 3 is malformed (1 columns, where there",
    ),
    "nothing": ("a.csv", "", "is empty: remove it from file, or fill it"),
    "Latin-1": ("a.csv", b"text\na\xe9\n", "is not UTF-8 (byte 0xe9 at offset 6): convert it"),
    "UTF-16": (
        "a.csv",
        "text\nzwölf\n".encode("utf-16"),
        "is UTF-16: convert it, for instance with iconv",
    ),
    "UTF-16, Chinese": ("a.csv", "text\n文字\n".encode("utf-16"), "is UTF-16: convert it"),
    "UTF-16 without a mark": ("a.csv", "text\na\n".encode("utf-16-be"), "is binary or UTF-16"),
    "an empty JSON list": ("a.jsonl", "[]\n", "holds no rows: write one JSON object a line"),
    "a JSON list of objects": ("a.jsonl", '[{"text": "a"}]', "holds no rows"),
    "a JSON row that is no object": (
        "a.jsonl",
        '{"text": "a"}\n[]\n',
        "line 2 is malformed (no JSON obj",
    ),
    "bottomless JSON": ("a.jsonl", '{"text": "a"}\n' + "[" * 100_000, "line 2 is malformed (no JSON"),
    "NaN": (
        "a.jsonl",
        '{"text": "a"}\n{"text": NaN}\n',
        "line 2 is malformed (no JSON: NaN stands for",
    ),
    "null": ("a.jsonl", '{"text": "a"}\n{"text": null}\n', "line 2 is malformed (no 'text')"),
    "a text for a header": ("a.csv", "x" * 500 + ",y\na,b\n", "has no column 'text': name one of 'xxx"),
    "another ending": ("a.txt", "text\na\n", "is of an unknown kind: write a .csv, .tsv or .jsonl file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_one_line_says_what_is_wrong(case, tmp_path):
    name, content, message = REFUSED[case]
    found = complaint(put(tmp_path, name, content), ["text"])
    assert message in found
    assert len(found) < 600


def test_a_folder_and_a_pattern_are_no_file(tmp_path):
    assert "is a folder: write a .csv, .tsv or .jsonl file" in complaint(tmp_path)
    for name in ("a.csv", "b.csv"):
        put(tmp_path, name, PLAIN)
    assert "matches 2 files: name one" in complaint(tmp_path / "*.csv")


def test_a_column_cannot_be_two_things(tmp_path):
    assert "column 'text' is named for two things" in complaint(
        put(tmp_path, "a.csv", PLAIN), ["text", "text"]
    )


@pytest.mark.parametrize("kind", ["list", "object", "truth"])
def test_a_json_text_is_a_text(kind, tmp_path):
    value = {"list": ["I", "enjoy"], "object": {"a": "b"}, "truth": True}[kind]
    path = put(tmp_path, "a.jsonl", json.dumps({"text": "a"}) + "\n" + json.dumps({"text": value}) + "\n")
    (first, second) = table(path, ["text"]).rows()
    assert first.text("text") == "a"
    with pytest.raises(Unusable, match=r"'text' is .*, where a text should be"):
        second.text("text")


@pytest.mark.parametrize("name", SEPARATORS)
@pytest.mark.parametrize("quoted", [False, True])
def test_the_likely_separator_is_named_and_reads_the_file(name, quoted, tmp_path):
    quoting = csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL
    table = pandas.DataFrame({"text": ["a; b, c | d\te"], "label": ["x"]})
    for ending, own in (("csv", "comma"), ("tsv", "tab")):
        path = tmp_path / f"a.{ending}"
        table.to_csv(path, sep=SEPARATORS[name], index=False, quoting=quoting)
        if name != own:
            assert f"write data.separator={name}" in complaint(path, setting="data.train")
            assert f"write separator={name}" in complaint(path)
            if not quoted:
                assert f"or write separator={name} if that" in complaint(path, ["note"])
        assert texts(path, separator=name) == [("a; b, c | d\te", "x")]


# --- quotes that go wrong -----------------------------------------------------------------------------

WRONG_QUOTES = 'text\tlabel\na\tx\n"Great" film\ty\nb\tx\n"lone\ty\nc\tx\n"d\ne"\tx\n"never closed\tx\nf\tx\n'


def test_a_lone_quote_is_named_with_its_line_and_what_to_write(tmp_path):
    path = put(tmp_path, "a.tsv", WRONG_QUOTES)
    message = complaint(path, setting="data.train")
    assert f"{path}, line 3 is malformed (a cell's quotes go wrong" in message
    assert "write data.quotes=false where they are text" in message
    assert message.endswith("or write data.malformed_rows=skip")
    assert "write quotes=false" in complaint(path)
    assert "malformed_rows" not in complaint(path)


def test_a_lone_quote_costs_its_line_alone(tmp_path):
    file = table(put(tmp_path, "a.tsv", WRONG_QUOTES), ["text", "label"], setting="data.train", skip=True)
    rows = [row.text("text") for row in file.rows()]
    assert [kept for kept in rows if kept in "abcf"] == ["a", "b", "c", "f"]
    lines = [int(why.split(", line ")[1].split()[0]) for why in file.skipped]
    assert lines[:2] == [3, 5]
    assert 9 in lines


def test_without_quotes_a_quote_is_text(tmp_path):
    path = put(tmp_path, "a.tsv", 'text\tlabel\n"Great" film\ty\n"lone\tx\nend"\tx\n')
    assert texts(path, quotes=False) == [('"Great" film', "y"), ('"lone', "x"), ('end"', "x")]


@pytest.mark.parametrize(
    "rows", ['"lone\t1\nb\t2\nend"\t3\n', '1\t"lone\n2\tb\n3\tend"\n'], ids=["first", "last"]
)
def test_quotes_that_swallow_rows_are_asked_about(rows, tmp_path):
    """A quote that begins one row's text and one that ends another's: valid, and most likely not meant."""
    path = put(tmp_path, "a.tsv", "text\tlabel\nfine\t0\n" + rows)
    for skip in (False, True):
        message = complaint(path, setting="data.train", skip=skip)
        assert f"{path}, lines 3 to {2 + rows.count(chr(10))} are one quoted cell, or as many rows" in message
        assert "write data.quotes=false where a quote is text, or data.quotes=true" in message
    assert len(texts(path, quotes=False)) == 1 + rows.count("\n")
    assert len(texts(path, quotes=True)) == 2
    # Lines and tabs in a cell are no doubt by themselves.
    other = put(tmp_path, "b.tsv", 'text\tlabel\n"a\tb\nc"\t0\n"a\nb\nc"\t0\n0\t"a\nb\tc\td\n"\n')
    assert len(texts(other)) == 3
    assert texts(put(tmp_path, "c.tsv", 'text\n"a\nb\nc"\n'), ["text"]) == [("a\nb\nc",)]


@given(cells=st.lists(st.lists(st.text('ab",\n', max_size=5), min_size=1, max_size=3), max_size=6))
@settings(max_examples=100, deadline=None)
def test_reading_ends_and_every_line_is_accounted_for(cells):
    """Whatever the quotes do, no record begins before another ends, and a fault is one line."""
    raw = "\n".join(",".join(row) for row in cells)
    lines = [Line(number, text) for number, text in enumerate(raw.split("\n"), start=1)]
    found = list(records(lines, ",", quotes=True))
    starts = [record.line for record in found]
    assert starts == sorted(set(starts))
    strict = csv.reader((line.text + "\n" for line in lines), strict=True, skipinitialspace=True)
    try:
        expected = [row for row in strict if row]
    except csv.Error:
        assert any(isinstance(record.cells, csv.Error) for record in found)
    else:
        assert [record.cells for record in found] == expected
