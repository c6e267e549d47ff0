"""The benchmark of the preparation: both sides do the same text, and memory is that of the whole tree."""

import json
import subprocess
import sys
import time

import pytest

from nystromformer.benchmark import benchmark
from nystromformer.benchmark.measure import PeakMemory
from nystromformer.benchmark.prepare import ENCODE, OURS, encode
from nystromformer.benchmark.text import preparation, saved_tokenizer, texts
from nystromformer.errors import UserError
from nystromformer.settings.benchmark import BenchmarkSettings

from .text import corpus


def test_writes_both_rates_and_their_ratio(tmp_path, capsys):
    settings = BenchmarkSettings(
        what="prepare",
        files=[str(corpus(tmp_path))],
        length=64,
        vocab_size=400,
        workers=1,
        folder=str(tmp_path / "results"),
    )
    benchmark(settings)
    page = (tmp_path / "results" / "prepare_cpu.md").read_text()
    assert page in capsys.readouterr().out
    assert "encode_batch" in page
    numbers = json.loads((tmp_path / "results" / "prepare_cpu.json").read_text())
    ours, peer = numbers["runs"][OURS], numbers["runs"][ENCODE]
    assert numbers["ratio"] == pytest.approx(ours["mb_per_second"] / peer["mb_per_second"])
    assert ours["mb_per_second"] * ours["seconds"] == pytest.approx(numbers["megabytes"])
    assert min(ours["peak_bytes"], peer["peak_bytes"]) > 20e6  # Python with its libraries
    assert numbers["counts"]["train"]["tokens"] > 1000
    assert {file.name for file in (tmp_path / "results").iterdir()} == {"prepare_cpu.md", "prepare_cpu.json"}


def test_encode_batch_gets_all_of_the_text(tmp_path):
    settings = BenchmarkSettings(what="prepare", files=[str(corpus(tmp_path))], length=64, vocab_size=400)
    documents = texts(preparation(settings).data)
    assert len(documents) == 150
    settings.tokenizer = saved_tokenizer(settings, documents, tmp_path / "tokenizer")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(settings.tokenizer)
    expected = sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in documents)
    assert encode(preparation(settings))["tokens"] == expected


def test_peak_memory_is_that_of_the_children_too():
    hold = "import sys, time; held = b'x' * 60_000_000; print(flush=True); time.sleep(30)"
    start = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}])"
    parent = subprocess.Popen([sys.executable, "-c", start], stdout=subprocess.PIPE)
    try:
        assert parent.stdout is not None
        with PeakMemory(parent.pid) as peak:
            parent.stdout.readline()
            time.sleep(0.5)
        assert 60e6 < peak.bytes < 160e6
    finally:
        import psutil

        for process in (*psutil.Process(parent.pid).children(recursive=True), parent):
            process.kill()
        parent.wait()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"workers": -1}, "workers=-1"),
        ({"files": ["nowhere/*.txt"]}, "nowhere"),
        ({"tokenizer": "nowhere"}, "nowhere"),
        ({"length": 2}, "length=2"),
    ],
)
def test_impossible_settings_are_named(change, words, tmp_path):
    values = {"what": "prepare", "files": [str(corpus(tmp_path))], "folder": str(tmp_path / "results")}
    with pytest.raises(UserError, match=words):
        benchmark(BenchmarkSettings(**{**values, **change}))
