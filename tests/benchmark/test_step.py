"""The benchmark of the training step: models of one size that all learn, figures that add up."""

import json
from functools import partial

import pytest
import torch

from nystromformer.attention import native
from nystromformer.benchmark import benchmark, step
from nystromformer.benchmark.models import BERT, BERT_WITH_DROPOUT, EXACT, MODERNBERT, NEAR, OURS, PEER
from nystromformer.cli import main
from nystromformer.errors import UserError
from nystromformer.model.attention import NystromformerSelfAttention
from nystromformer.settings.benchmark import BenchmarkSettings

TINY = {
    "what": "step",
    "lengths": [32],
    "tokens": 128,
    "layers": 2,
    "hidden": 32,
    "head_dim": 16,
    "landmarks": 8,
    "kernel": 5,
    "vocab_size": 300,
    "repeats": 1,
    "device": "cpu",
}


def contenders(settings, length, device):
    return [make() for make in step.makers(settings, length, device).values()]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_model_learns_the_batch(dtype):
    settings = BenchmarkSettings(**{**TINY, "dtype": dtype})
    for contender in contenders(settings, 32, torch.device("cpu")):
        losses = [contender.step().item() for _ in range(60)]
        assert losses[0] == pytest.approx(5.77, abs=0.3)  # log 320, nothing known yet
        assert losses[-1] < losses[0] - 0.1, contender.name
        assert contender.flops > 0


def test_the_models_are_of_one_size_and_the_peer_runs_nystrom_attention():
    settings = BenchmarkSettings(**TINY)
    found = {c.name: c.model for c in contenders(settings, 32, torch.device("cpu"))}
    sizes = {name: sum(p.numel() for p in model.parameters()) for name, model in found.items()}
    own_heads = 32 * 32 + 32 + 2 * 32 + 2  # pooler and sentence order
    unused_positions = 2 * 32
    assert sizes[OURS] - own_heads == sizes[PEER]
    assert sizes[NEAR] == sizes[OURS]
    assert found[NEAR].config.neighbours == 64
    assert sizes[EXACT] - own_heads - unused_positions == sizes[BERT]
    peer = found[PEER].config
    assert (peer.num_landmarks, peer.segment_means_seq_len, peer.conv_kernel_size) == (8, 32, 5)
    assert found[BERT].config._attn_implementation == "sdpa"
    dropout = [found[name].config.attention_probs_dropout_prob for name in (BERT, BERT_WITH_DROPOUT)]
    assert dropout == [0, 0.1]


def test_writes_table_and_numbers(tmp_path, capsys):
    words = [f"{key}={value}" for key, value in TINY.items() if key != "lengths"]
    assert main(["benchmark", *words, "lengths=[16,32]", "dtype=bfloat16", f"folder={tmp_path}"]) == 0
    page = (tmp_path / "step_cpu_bfloat16.md").read_text()
    assert page in capsys.readouterr().out
    row = json.loads((tmp_path / "step_cpu_bfloat16.json").read_text())["lengths"]["32"]
    assert set(row) == {OURS, NEAR, EXACT, PEER, BERT, BERT_WITH_DROPOUT}
    assert row[OURS]["tokens_per_second"] == pytest.approx(128 / row[OURS]["median"])
    assert row[OURS]["model_flops"] == row[PEER]["model_flops"]
    assert f"| times faster than {BERT} |" in page
    assert f"{row[NEAR]['median'] / row[OURS]['median']:.2f} |" in page
    assert f"{row[BERT]['median'] / row[OURS]['median']:.2f} |" in page
    assert "utilisation" not in page  # no peak is known of a CPU
    assert "Peak of the allocator" not in page
    assert f"- {OURS} at 16 tokens: " in page


@pytest.mark.parametrize("what", ["contenders", "ours"])
def test_what_does_not_fit_into_memory_is_left_out_and_the_rest_is_kept(monkeypatch, tmp_path, what):
    real = step.makers

    def makers(settings, length, device):
        def full(make):
            contender = make()

            def run():
                raise torch.OutOfMemoryError("CUDA out of memory")

            contender.step = run
            return contender

        found = real(settings, length, device)
        too_large = [OURS] if what == "ours" else [EXACT, BERT_WITH_DROPOUT]
        return {
            name: partial(full, make) if length == 32 and name in too_large else make
            for name, make in found.items()
        }

    monkeypatch.setattr(step, "makers", makers)
    result = benchmark(BenchmarkSettings(**{**TINY, "lengths": [16, 32], "folder": str(tmp_path)}))
    assert len(result["lengths"][16]) == 6
    left = {OURS, NEAR, EXACT, PEER, BERT, BERT_WITH_DROPOUT}
    left -= {EXACT, BERT_WITH_DROPOUT} if what == "contenders" else {OURS}
    assert set(result["lengths"][32]) == left
    page = (tmp_path / "step_cpu.md").read_text()
    assert "did not fit into memory" in page
    monkeypatch.setattr(step, "_measure_what_fits", lambda *_: {})
    with pytest.raises(UserError, match="tokens="):
        benchmark(BenchmarkSettings(**{**TINY, "folder": str(tmp_path)}))


def test_the_models_asked_for_are_measured_alone(tmp_path):
    chosen = {**TINY, "models": [BERT, OURS], "folder": str(tmp_path)}
    result = benchmark(BenchmarkSettings(**chosen))
    assert all(row.keys() == {BERT, OURS} for row in result["lengths"].values())
    assert f"times faster than {BERT}" in (tmp_path / "step_cpu.md").read_text()
    with pytest.raises(UserError, match=f"models contains BERT: write names of '{OURS}', "):
        benchmark(BenchmarkSettings(**{**chosen, "models": ["BERT"]}))


def test_steps_that_are_timed_together_share_the_time(monkeypatch, tmp_path):
    """On a GPU, which computes one while the CPU launches the next."""
    done, train = [], step.train_step
    monkeypatch.setattr(step, "train_step", lambda *given, **more: done.append(1) or train(*given, **more))
    monkeypatch.setattr(step, "_together", lambda device: 3)

    def in_turn(runs, repeats, device):
        for run in runs.values():
            run()
        return {name: [6.0] for name in runs}

    monkeypatch.setattr(step, "in_turn", in_turn)
    result = benchmark(BenchmarkSettings(**{**TINY, "models": [OURS], "folder": str(tmp_path)}))
    assert len(done) == 1 + 3
    assert result["lengths"][32][OURS]["median"] == 2.0
    assert ", 3 steps together. " in (tmp_path / "step_cpu.md").read_text()


def test_modernbert_is_measured_where_it_is_asked_for():
    settings = BenchmarkSettings(**{**TINY, "modernbert": True})
    *others, modern = contenders(settings, 32, torch.device("cpu"))
    assert modern.name == MODERNBERT
    assert len(others) == 6
    assert modern.model.config.num_hidden_layers == 2
    assert modern.flops is None
    losses = [modern.step().item() for _ in range(3)]
    assert losses[0] == pytest.approx(5.77, abs=0.5)
    assert losses[-1] != losses[0]


@pytest.mark.skipif(native.library() is None, reason="no g++ on Linux to compile the kernel")
def test_the_implementation_is_chosen_and_told():
    for way, words in (("composed", "composed of PyTorch's operators"), ("auto", "")):
        settings = BenchmarkSettings(**{**TINY, "implementation": way, "landmarks": 16})
        ours = contenders(settings, 32, torch.device("cpu"))[0]
        layers = [m for m in ours.model.modules() if isinstance(m, NystromformerSelfAttention)]
        assert [layer.attend.implementation for layer in layers] == [way, way]
        assert ours.attention.startswith(words)
        assert ("composed" in ours.attention) == (way == "composed")


def test_each_length_is_compiled_for_itself(monkeypatch):
    """With dynamic shapes all lengths from the second on would share slower code."""
    said = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **named: said.append(named))
    contenders(BenchmarkSettings(**{**TINY, "compile": True}), 32, torch.device("cpu"))
    assert said == [{"dynamic": False}] * 5  # all but transformers' Nystromformer
    assert torch._dynamo.config.cache_size_limit >= 64  # the older name of recompile_limit


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden": 40}, "write hidden=32"),
        ({"layers": 0}, "layers=0"),
        ({"vocab_size": 10}, "vocab_size=10"),
        ({"dtype": "float16"}, "dtype=bfloat16"),
        ({"lengths": [20]}, "does not divide"),
        ({"implementation": "fast"}, "implementation='fast' is unknown: write one of auto"),
    ],
)
def test_impossible_settings_are_named(change, words):
    with pytest.raises(UserError, match=words):
        benchmark(BenchmarkSettings(**{**TINY, **change}))


def test_what_is_not_said_follows_the_benchmark():
    step, attention = BenchmarkSettings(what="step"), BenchmarkSettings()
    assert (step.lengths, step.tokens) == ([512, 2048, 4096], 4096)
    assert (attention.lengths[-1], attention.tokens) == (16384, 8192)
