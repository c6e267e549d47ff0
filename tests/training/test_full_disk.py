"""A disk that takes no more: the run says so, keeps what it has, and leaves nothing half."""

import contextlib
import resource
import signal
import subprocess

import pytest
import torch
from accelerate import Accelerator

from nystromformer.cli import main
from nystromformer.training.checkpoint import (
    CheckpointNotWritten,
    Progress,
    load_latest,
    save_checkpoint,
    saved_steps,
)
from nystromformer.training.metrics import MetricsLog

from .runs import COMMAND, events


@contextlib.contextmanager
def largest_file(size: int):
    """No file of this process may grow beyond `size` bytes, as on a disk with so much left."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_the_checkpoint_before_is_kept_and_nothing_half_is_left(tmp_path):
    accelerator = Accelerator(cpu=True)
    model = torch.nn.Linear(100, 100)
    optimizer = torch.optim.AdamW(model.parameters())
    save_checkpoint(tmp_path, model, optimizer, Progress(1), accelerator, keep=2)
    for size in (1_000, 20_000):  # in the random state, in the weights
        with largest_file(size), pytest.raises(CheckpointNotWritten, match=r"step-2 .*File too large"):
            save_checkpoint(tmp_path, model, optimizer, Progress(2), accelerator, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-1"]
    assert load_latest(tmp_path, model, optimizer, accelerator).step == 1
    save_checkpoint(tmp_path, model, optimizer, Progress(2), accelerator, keep=2)
    assert saved_steps(tmp_path) == [1, 2]


@pytest.mark.parametrize("choice", ["stop", "continue"])
def test_a_run_stops_or_goes_on(overrides, tmp_path, capsys, choice):
    changes = [*overrides, f"training.on_full_disk={choice}", "data.max_documents=null"]
    assert main(["prepare", *changes]) == 0
    with largest_file(600_000):  # the model passes, the optimizer's moments do not
        code = main(["pretrain", *changes])
    printed = capsys.readouterr()
    run = tmp_path / "runs/smoke"
    assert [path.name for path in (run / "checkpoints").iterdir()] == []
    if choice == "stop":
        assert code == 2
        assert "cannot write the checkpoint step-6 (File too large)" in printed.err
        assert "Traceback" not in printed.err
    else:
        assert code == 0
        assert printed.out.count("going on without") == 2
        assert (run / "model").exists()


def test_metrics_wait_for_room(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"kind": "train", "step": 1})
    with largest_file(40), pytest.warns(UserWarning, match="they wait"):
        log.append({"kind": "train", "step": 2})
    assert [event["step"] for event in log.events()] == [1, 2]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1
    log.append({"kind": "train", "step": 3})
    assert [event["step"] for event in MetricsLog(tmp_path / "metrics.jsonl").events()] == [1, 2, 3]


@pytest.mark.slow
def test_a_full_file_system_and_room_again(overrides, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        changes = [*overrides, f"runs_folder={disk}", "training.checkpoint_every=2"]
        stopped = subprocess.run([*COMMAND, *changes], capture_output=True, text=True)
        assert stopped.returncode == 2
        assert "No space left on device" in stopped.stderr
        assert "Traceback" not in stopped.stderr
        assert not list((disk / "smoke/checkpoints").glob(".*"))
        assert saved_steps(disk / "smoke/checkpoints")
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        assert subprocess.run([*COMMAND, *changes], capture_output=True).returncode == 0
        assert events(disk / "smoke", "train")[-1]["step"] == 12
    finally:
        subprocess.run(["umount", str(disk)], check=True)
