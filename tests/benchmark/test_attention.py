"""The benchmark of attention: contenders that agree, measures that count right, files that are written."""

import json

import pytest
import torch

from nystromformer.benchmark import as_markdown, benchmark
from nystromformer.benchmark.attention import copy_rate, draw, moved_bytes, ratios
from nystromformer.benchmark.contenders import (
    CUDNN,
    FLASH,
    FUSED,
    LUCIDRAINS,
    NEAR,
    OURS,
    PADDED,
    SCATTERED,
    STORED,
    TRANSFORMERS,
    contenders,
)
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


def test_the_row_with_neighbours_is_the_mechanism_and_can_be_left_out():
    settings = BenchmarkSettings(**{**TINY, "neighbours": 16})
    out = {c.name: c.run() for c in contenders(settings, 64, torch.device("cpu"))}
    assert (out[NEAR] - out[OURS]).abs().max() > 1e-3
    settings.salient_tokens = 9
    salient = {c.name: c.run() for c in contenders(settings, 64, torch.device("cpu"))}
    assert (salient[NEAR] - out[NEAR]).abs().max() > 1e-3
    without = BenchmarkSettings(**{**TINY, "neighbours": None})
    assert NEAR not in {c.name for c in contenders(without, 64, torch.device("cpu"))}


def test_kept_bytes_counts_each_memory_once_and_no_inputs():
    x = torch.randn(100, requires_grad=True)
    assert kept_bytes(Contender("input only", [x], lambda: x * x)) == 0
    assert kept_bytes(Contender("one more", [x], lambda: x.exp().square())) == 400


def test_writes_table_numbers_and_plot(tmp_path, capsys):
    benchmark(BenchmarkSettings(**TINY, lengths=[16, 32], folder=str(tmp_path / "results")))
    page = (tmp_path / "results" / "attention_cpu.md").read_text()
    assert page in capsys.readouterr().out
    assert "| nystromformer |" in page
    assert f"| {NEAR} |" in page
    assert "times the time with exact neighbours" in page
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
        ({"neighbours": 0}, "neighbours=0"),
        ({"salient_tokens": 0}, "salient_tokens=0"),
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


GPU_ROW = {
    name: {
        "training_median": seconds,
        "busy_seconds": seconds / 2,
        "forward_median": seconds / 3,
        "kept_bytes": 8,
        "peak_bytes": 9,
    }
    for name, seconds in (
        (OURS, 2e-3),
        (PADDED, 2e-3),
        (SCATTERED, 2e-3),
        (TRANSFORMERS, 12e-3),
        (FUSED, 5e-3),
        (FLASH, 6e-3),
        (CUDNN, 4e-3),
    )
}


def test_the_floor_moves_each_tensor_once():
    settings = BenchmarkSettings(tokens=65536, heads=12, head_dim=64, dtype="bfloat16")
    assert moved_bytes(settings, 4096) == 11 * 65536 * 768 * 2
    assert moved_bytes(settings, 131072) == 11 * 131072 * 768 * 2  # one sequence at least


def test_ratios_on_a_gpu():
    found = ratios(GPU_ROW, floor=4e-4)
    assert found["times faster than transformers'"] == pytest.approx(6)
    assert found["times faster than FlashAttention-2"] == pytest.approx(3)
    assert found["times faster than the fastest exact attention"] == pytest.approx(2)
    assert found["times the floor"] == pytest.approx(5)
    assert "times the floor" not in ratios(GPU_ROW)
    busy = ratios(GPU_ROW, floor=4e-4, measured="busy_seconds")
    assert busy["times the floor"] == pytest.approx(2.5)
    assert busy["times faster than transformers'"] == pytest.approx(6)
    assert (
        ratios({name: one | {"busy_seconds": None} for name, one in GPU_ROW.items()}, None, "busy_seconds")
        == {}
    )


def test_the_page_of_a_gpu_names_the_floor(tmp_path):
    result = {
        "settings": vars(BenchmarkSettings(**TINY)),
        "machine": {"device": "a GPU"},
        "seconds": 60.0,
        "scaling": None,
        "lengths": {512: GPU_ROW},
        "floor": {"bytes_per_second": 2.5e12, "seconds": {512: 4e-4}},
    }
    page = as_markdown(result)
    draw(result, tmp_path / "attention.png")
    assert (tmp_path / "attention.png").stat().st_size > 1000
    assert "The floor, ms: 0.40 at 512" in page
    assert "2.50 TB/s" in page
    assert page.count("| times faster than FlashAttention-2 | 3.00 |") == 2  # by the clock, and of the GPU
    assert "| times the floor | 5.00 |" in page
    assert "| times the floor | 2.50 |" in page


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(tmp_path):
    settings = {**TINY, "head_dim": 64, "device": "cuda", "dtype": "bfloat16"}
    benchmark(BenchmarkSettings(**settings, lengths=[64, 128], folder=str(tmp_path)))
    assert "FlashAttention-2" in (tmp_path / "attention_cuda.md").read_text()
    assert copy_rate(torch.device("cuda"), size=2**24) > 1e9
