"""The benchmark of the loader: it prepares, draws with each number of workers, and writes its page."""

import json
from pathlib import Path

import pytest

from nystromformer.benchmark import benchmark
from nystromformer.benchmark.text import padding_shares
from nystromformer.cli import main
from nystromformer.data.examples import PretrainingExamples
from nystromformer.data.storage import PreparedData
from nystromformer.errors import UserError
from nystromformer.settings.benchmark import BenchmarkSettings

from .text import corpus


def test_writes_speed_start_and_padding(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # prepared data go to ./prepared, as in every other command
    small = ["length=64", "vocab_size=400", "tokens=512", "batches=12", "repeats=2", "loader_workers=[0,1]"]
    words = [f"files=[{corpus(tmp_path)}]", "folder=results", *small]
    assert main(["benchmark", "what=loader", *words]) == 0
    page = Path("results/loader_cpu.md").read_text()
    assert page in capsys.readouterr().out
    assert "from corpus.txt" in page
    assert str(tmp_path) not in page
    numbers = json.loads(Path("results/loader_cpu.json").read_text())
    assert str(tmp_path) not in json.dumps(numbers)
    for workers in ("0", "1"):
        found = numbers["workers"][workers]
        assert len(found["tokens_per_second"]) == len(found["first_batch_seconds"]) == 2
        assert min(found["tokens_per_second"]) > 0
        assert 0 < max(found["first_batch_seconds"]) < 60
    prepared = PreparedData.open(Path("prepared", numbers["prepared"]))
    examples = PretrainingExamples(prepared, "train", max_length=64)
    assert numbers["padding"] == padding_shares(examples, numbers["rows"], 0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"loader_workers": []}, "loader_workers"),
        ({"loader_workers": [-1]}, "holds -1"),
        ({"batches": 0}, "batches=0"),
        ({"length": 4}, "length=4"),
        ({"vocab_size": 10}, "vocab_size=10"),
        ({"files": ["nowhere/*.txt"]}, "nowhere"),
    ],
)
def test_impossible_settings_are_named(change, words, tmp_path):
    with pytest.raises(UserError, match=words):
        benchmark(BenchmarkSettings(**{"what": "loader", "folder": str(tmp_path), **change}))
