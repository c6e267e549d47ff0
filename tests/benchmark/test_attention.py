"""The benchmark of attention: contenders that agree, measures that count right, files that are written."""

import json

import pytest
import torch

from nystromformer.benchmark import benchmark
from nystromformer.benchmark.contenders import LUCIDRAINS, OURS, STORED, TRANSFORMERS, contenders
from nystromformer.benchmark.measure import Contender, kept_bytes
from nystromformer.errors import UserError
from nystromformer.settings.benchmark import BenchmarkSettings

TINY = {"tokens": 64, "heads": 2, "head_dim": 8, "landmarks": 8, "kernel": 5, "repeats": 1, "device": "cpu"}


def test_the_nystrom_contenders_compute_the_same_thing():
    """With one sequence and one head, where all take the inverse's start from the same matrix."""
    settings = BenchmarkSettings(**{**TINY, "heads": 1})
    out = {c.name: c.run() for c in contenders(settings, 64, torch.device("cpu"))}
    assert {OURS, TRANSFORMERS, LUCIDRAINS, STORED} <= set(out)
    torch.testing.assert_close(out[TRANSFORMERS], out[OURS], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(out[LUCIDRAINS], out[OURS], rtol=1e-3, atol=1e-4)


def test_kept_bytes_counts_each_memory_once_and_no_inputs():
    x = torch.randn(100, requires_grad=True)
    assert kept_bytes(Contender("input only", [x], lambda: x * x)) == 0
    assert kept_bytes(Contender("one more", [x], lambda: x.exp().square())) == 400


def test_writes_table_numbers_and_plot(tmp_path, capsys):
    benchmark(BenchmarkSettings(**TINY, lengths=[16, 32], folder=str(tmp_path / "results")))
    page = (tmp_path / "results" / "attention_cpu.md").read_text()
    assert page in capsys.readouterr().out
    assert "| nystromformer |" in page
    assert "times faster than fused exact attention" in page
    numbers = json.loads((tmp_path / "results" / "attention_cpu.json").read_text())
    assert numbers["lengths"]["32"][TRANSFORMERS]["training_median"] > 0
    assert numbers["machine"]["torch"] == torch.__version__
    assert (tmp_path / "results" / "attention_cpu.png").stat().st_size > 1000


def test_a_matrix_too_large_is_left_out():
    settings = BenchmarkSettings(**TINY, largest_matrix=1e-9)
    assert STORED not in {c.name for c in contenders(settings, 32, torch.device("cpu"))}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"what": "coffee"}, "what='coffee' is unknown"),
        ({"lengths": [100]}, "does not divide"),
        ({"lengths": [8]}, "exact there"),
        ({"kernel": 4}, "kernel=4"),
        ({"repeats": 0}, "repeats=0"),
        ({"dtype": "int8"}, "dtype='int8'"),
        ({"device": "tpu"}, "device='tpu'"),
        ({"folder": ""}, "folder is empty"),
    ],
)
def test_impossible_settings_are_named(change, words):
    with pytest.raises(UserError, match=words):
        benchmark(BenchmarkSettings(**{**TINY, "lengths": [16], **change}))


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        benchmark(BenchmarkSettings(**TINY, lengths=[16], folder=str(tmp_path / "file" / "below")))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_named(tmp_path):
    with pytest.raises(UserError, match="finds no GPU"):
        benchmark(BenchmarkSettings(**{**TINY, "device": "cuda"}, lengths=[16], folder=str(tmp_path)))
