"""Small parts of the loop: agreement, signals, the clock, the trace, the best checkpoint, the checks."""

import json
import shutil
import signal
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from nystromformer.cli import main
from nystromformer.settings import TrainingSettings
from nystromformer.training import devices
from nystromformer.training.agreement import Agreement
from nystromformer.training.checkpoint import Progress, save_checkpoint, saved_steps
from nystromformer.training.clock import Clock
from nystromformer.training.signals import SIGNALS, StopRequest


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
        import time

        time.sleep(0.05)
        yield 1

    assert list(clock.waiting(slow())) == [1]
    lap = clock.lap()
    assert 0.05 <= lap.waited <= lap.seconds
    assert clock.lap().waited == 0


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
