"""Small parts of the loop: agreement, signals, the clock, the trace, the best checkpoint, the checks."""

import json
import re
import shutil
import signal
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from nystromformer.cli import main
from nystromformer.settings import PretrainSettings, TrainingSettings
from nystromformer.settings.compose import compose
from nystromformer.training import devices, loop
from nystromformer.training.checkpoint import Progress, save_checkpoint, saved_steps
from nystromformer.training.clock import Clock, Forecast
from nystromformer.training.phases import plan_of
from nystromformer.training.signals import SIGNALS, StopRequest
from nystromformer.training.together import Agreement


def test_one_process_agrees_with_itself_at_once():
    assert Agreement(Accelerator(cpu=True)).exchange([1.0, 2.0]) == [1.0, 2.0]


def test_several_processes_learn_the_sums_one_step_later():
    def reduce(numbers: torch.Tensor, how: str) -> torch.Tensor:
        assert how == "sum"
        return numbers + 10

    accelerator = SimpleNamespace(num_processes=2, device=torch.device("cpu"), reduce=reduce)
    agreement = Agreement(accelerator)
    answers = [agreement.exchange([number]) for number in (1.0, 2.0, 3.0)]
    assert answers == [[0.0], [11.0], [12.0]]


def test_a_signal_of_any_process_stops_all_with_its_code():
    stop = StopRequest()
    assert not stop.decide([0.0] * len(SIGNALS))
    assert stop.votes() == [0.0] * len(SIGNALS)
    assert stop.decide([float(number == signal.SIGUSR1) * 2 for number in SIGNALS])
    with pytest.raises(SystemExit) as left:
        stop.exit()
    assert left.value.code == 128 + signal.SIGUSR1


def test_the_clock_tells_waiting_from_training():
    clock = Clock(Progress(), None)

    def slow():
        time.sleep(0.05)
        yield 1

    assert list(clock.waiting(slow())) == [1]
    lap = clock.lap()
    assert 0.05 <= lap.waited <= lap.seconds
    assert clock.lap().waited == 0


DEMO_SECONDS = 238
"""Of the 1,500 steps of the demo, on the README's machine."""


def forecast_of(seconds_a_step: float, steps: int, done: int = 0, **limit: Any) -> dict[int, str]:
    """What is said, by step, where steps take so long; the first one of a session 5 seconds more."""
    demo = compose("pretrain", ["experiment=demo"])
    assert isinstance(demo, PretrainSettings)
    settings = replace(demo.training, **limit)
    progress = Progress(step=done, seconds=done * seconds_a_step)
    forecast, said = Forecast(progress, plan_of(settings), settings.max_minutes), {}
    progress.seconds += 5
    for _ in range(steps):
        progress.step += 1
        progress.seconds += seconds_a_step
        if line := forecast.told():
            said[progress.step] = line
    return said


def test_a_slow_machine_hears_at_once_how_long_it_will_take():
    pace = DEMO_SECONDS / 1500
    assert forecast_of(pace, 1500) == {65: "this machine needs about 4 minutes for the 1,500 steps"}
    assert forecast_of(2.7 * pace, 1500) == {25: "this machine needs about 11 minutes for the 1,500 steps"}
    assert forecast_of(3 * pace, 1400) == {23: "this machine needs about 12 minutes for the 1,500 steps"}
    ((step, line),) = forecast_of(9 * pace, 400).items()
    assert step == 9
    assert line == (
        "this machine makes about 501 of the 1,500 steps in the 12 minutes allowed; the rate "
        "falls to zero over those"
    )
    assert min(forecast_of(26 * pace, 100)) == 4
    assert forecast_of(pace, 800, done=700) == {765: "this machine needs about 4 minutes for the 1,500 steps"}
    assert forecast_of(pace, 1500, max_minutes=None) == {}


def test_a_slow_step_is_heard_of_before_the_run_is_cut(overrides, tmp_path, capsys, monkeypatch):
    """A step that sleeps, in real runs: one that the limit cuts, one that it does not."""
    step = loop.train_step

    def slow(*arguments, **named):
        time.sleep(0.05)
        return step(*arguments, **named)

    monkeypatch.setattr(loop, "train_step", slow)
    monkeypatch.setattr(Forecast, "LEAST_SECONDS", 0.2)
    few = ["training.log_every=20", "training.validate_every=10000", "training.checkpoint_every=10000"]
    assert main(["pretrain", *overrides, *few, "training.steps=10000", "training.max_minutes=0.05"]) == 0
    printed = capsys.readouterr().out
    told = re.search(r"this machine makes about (\d+) of the 10,000 steps in the 0.05 minutes", printed)
    assert int(told[1]) <= 60
    done = json.loads((tmp_path / "runs/smoke/report.json").read_text())["steps"]
    assert done <= 60
    assert told.start() < printed.index("step ")
    assert main(["pretrain", *overrides, *few, "training.steps=12", "training.max_minutes=5", "name=b"]) == 0
    assert "this machine needs about 1 minute for the 12 steps" in capsys.readouterr().out


@pytest.mark.nightly
def test_the_demo_shows_learning_at_a_ninth_of_the_speed(tmp_path, monkeypatch):
    """By a clock on which each step takes nine times what it took on the README's machine."""
    monkeypatch.setattr(Clock, "now", lambda clock: 9 * DEMO_SECONDS / 1500 * clock._progress.step)
    folders = [f"data.folder={tmp_path / 'prepared'}", f"runs_folder={tmp_path / 'runs'}"]
    assert main(["pretrain", *folders, "training.validate_every=100000"]) == 0
    last = json.loads((tmp_path / "runs/demo/report.json").read_text())["final"]
    assert last["step"] == pytest.approx(504, abs=2)
    assert last["unigram_loss"] - last["mlm_loss"] >= 1.0


def test_the_best_checkpoint_is_spared(tmp_path):
    accelerator = Accelerator(cpu=True)
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    for step, loss in ((1, 3.0), (2, 1.0), (3, None), (4, 2.0), (5, None), (6, 1.5)):
        save_checkpoint(
            tmp_path,
            model,
            optimizer,
            Progress(step),
            accelerator,
            keep=2,
            keep_best=True,
            validation_loss=loss,
        )
    assert saved_steps(tmp_path) == [2, 5, 6]
    assert (tmp_path / "best").read_text() == "step-2\n"


def test_profile_leaves_a_trace_and_a_table(overrides, tmp_path):
    small = ["model.num_hidden_layers=1", "training.global_batch_size=2", "training.validation_examples=2"]
    assert main(["pretrain", *overrides, *small, "training.profile_steps=1", "training.steps=4"]) == 0
    folder = tmp_path / "runs/smoke/profile"
    assert json.loads((folder / "trace.json").read_text())["traceEvents"]
    assert "aten::" in (folder / "operations.txt").read_text()


def test_deterministic_mode_and_tf32(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        devices.open_accelerator(TrainingSettings(deterministic=True, tf32=True))
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        devices.open_accelerator(TrainingSettings())
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.get_float32_matmul_precision() == "highest"


def test_accelerates_own_sharding_is_refused(overrides, capsys, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert main(["pretrain", *overrides]) == 2
    assert "training.parallel=fsdp" in capsys.readouterr().err


def test_a_run_does_not_go_on_with_other_data(overrides, tmp_path, capsys):
    """The corpus changed under the same name, so that the same settings lead to another folder."""
    assert main(["pretrain", *overrides, "training.steps=2"]) == 0
    corpus = tmp_path / "stories.txt"
    (source,) = (o.split("=[")[1][:-1] for o in overrides if o.startswith("data.files"))
    shutil.copy(source, corpus)
    changed = [o for o in overrides if not o.startswith("data.files")] + [f"data.files=[{corpus}]"]
    assert main(["pretrain", *changed, "training.steps=2", "name=own"]) == 0
    corpus.write_text(corpus.read_text().replace("sailor", "tailor"))
    capsys.readouterr()
    assert main(["pretrain", *changed, "training.steps=2", "name=own"]) == 2
    assert "was trained on text-" in capsys.readouterr().err


def test_figures_of_a_reading(overrides, tmp_path):
    assert main(["pretrain", *overrides, "training.steps=2"]) == 0
    lines = (tmp_path / "runs/smoke/metrics.jsonl").read_text().splitlines()
    (event,) = (event for event in map(json.loads, lines) if event["kind"] == "train")
    assert event["tokens_per_second"] > event["padding_per_second"] >= 0
    assert event["model_flops_per_second"] > 0
    assert event["model_flop_utilisation"] is None  # no peak is known of a CPU
    assert 0 <= event["data_wait"] < 1
    assert event["peak_memory_bytes"] > 1e7


def test_a_training_on_a_cpu_keeps_the_memory_of_its_tensors(overrides, monkeypatch):
    asked = []
    monkeypatch.setattr(loop, "keep_freed_memory", lambda: asked.append("training"))
    assert main(["pretrain", *overrides, "training.steps=2"]) == 0
    assert asked == ["training"]
