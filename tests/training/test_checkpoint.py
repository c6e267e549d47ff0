import json

import pytest
import torch
from accelerate import Accelerator

from nystromformer.errors import UserError
from nystromformer.training.checkpoint import Progress, latest_step, load_latest, save_checkpoint, saved_steps


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


def trained(steps: int = 3) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(steps)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(steps):
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def save(folder, step, accelerator, keep=2):
    model, optimizer = trained(step)
    save_checkpoint(folder, model, optimizer, Progress(step, 1.5 * step), accelerator, keep=keep)
    return model, optimizer


def test_everything_comes_back(tmp_path, accelerator):
    model, optimizer = save(tmp_path, 3, accelerator)
    noise_after = torch.rand(5)
    other, other_optimizer = trained(1)
    progress = load_latest(tmp_path, other, other_optimizer, accelerator)
    assert progress == Progress(3, 4.5)
    torch.testing.assert_close(torch.rand(5), noise_after, rtol=0, atol=0)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    before, after = optimizer.state_dict()["state"], other_optimizer.state_dict()["state"]
    for number in before:
        torch.testing.assert_close(before[number]["exp_avg_sq"], after[number]["exp_avg_sq"], rtol=0, atol=0)


def test_a_run_that_goes_on_on_another_device_draws_numbers_of_its_own(tmp_path, accelerator, monkeypatch):
    """The checkpoint of a CPU holds no random state of a GPU; on several they must not be the same."""
    save(tmp_path, 3, accelerator)
    seeds = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    for process in (0, 1):
        monkeypatch.setattr(type(accelerator), "process_index", process)
        load_latest(tmp_path, *trained(1), accelerator)
    assert {3 * 1_000_003, 3 * 1_000_003 + 1} <= set(seeds)


def test_the_random_numbers_of_a_gpu_come_back(tmp_path, accelerator, monkeypatch):
    """Dropout there draws from the generator of the process's own GPU, the current one."""
    (model, optimizer), (other, other_optimizer) = trained(3), trained(1)
    held = [torch.arange(16, dtype=torch.uint8)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: held[-1])
    monkeypatch.setattr(torch.cuda, "set_rng_state", held.append)
    save_checkpoint(tmp_path, model, optimizer, Progress(3), accelerator, keep=1)
    held.append(torch.zeros(16, dtype=torch.uint8))
    load_latest(tmp_path, other, other_optimizer, accelerator)
    assert len(held) == 3
    assert torch.equal(held[-1], held[0])


def test_an_empty_folder_is_a_fresh_start(tmp_path, accelerator):
    assert load_latest(tmp_path / "absent", *trained(), accelerator) == Progress()


def test_old_checkpoints_are_pruned_and_latest_names_the_newest(tmp_path, accelerator):
    for step in (1, 2, 3, 10):
        save(tmp_path, step, accelerator)
    assert saved_steps(tmp_path) == [3, 10]
    assert (tmp_path / "latest").read_text() == "step-10\n"


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "random-0.pt", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "missing"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, accelerator, name, damage):
    save(tmp_path, 1, accelerator)
    save(tmp_path, 2, accelerator)
    file = tmp_path / "step-2" / name
    content = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif name == "state.json":
        file.write_text(json.dumps({"step": 2, "sha256": {"model.safetensors": "0"}}))
    else:
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    with pytest.warns(UserWarning, match="step-2"):
        assert load_latest(tmp_path, *trained(), accelerator).step == 1


def test_no_whole_checkpoint_is_an_error_not_a_fresh_start(tmp_path, accelerator):
    save(tmp_path, 1, accelerator)
    (tmp_path / "step-1" / "optimizer.pt").unlink()
    with pytest.warns(UserWarning, match="step-1"), pytest.raises(UserError, match="no earlier one is whole"):
        load_latest(tmp_path, *trained(), accelerator)


def point_to(folder, step: int) -> None:
    (folder / "latest").write_text(f"step-{step}\n")


def test_the_run_goes_on_where_latest_points_and_gives_up_what_came_after(tmp_path, accelerator):
    for step in (1, 2, 3):
        save(tmp_path, step, accelerator, keep=9)
    point_to(tmp_path, 1)
    assert latest_step(tmp_path) == 1
    assert load_latest(tmp_path, *trained(), accelerator).step == 1
    save(tmp_path, 2, accelerator, keep=1)
    assert saved_steps(tmp_path) == [2]
    assert load_latest(tmp_path, *trained(), accelerator).step == 2


def test_a_kill_before_latest_moved_leaves_the_checkpoint_before_in_use(tmp_path, accelerator):
    save(tmp_path, 1, accelerator)
    save(tmp_path, 2, accelerator)
    point_to(tmp_path, 1)
    assert load_latest(tmp_path, *trained(), accelerator).step == 1


@pytest.mark.parametrize("content", [None, "", "step-99\n", "nonsense", "step-\n"])
def test_without_a_usable_latest_the_newest_is_taken(tmp_path, accelerator, content):
    save(tmp_path, 1, accelerator)
    save(tmp_path, 2, accelerator)
    (tmp_path / "latest").unlink()
    if content is not None:
        (tmp_path / "latest").write_text(content)
    assert load_latest(tmp_path, *trained(), accelerator).step == 2


def test_where_latest_and_all_before_are_damaged_a_later_whole_one_is_taken(tmp_path, accelerator):
    save(tmp_path, 1, accelerator)
    save(tmp_path, 2, accelerator)
    point_to(tmp_path, 1)
    (tmp_path / "step-1/optimizer.pt").write_bytes(b"")
    with pytest.warns(UserWarning, match="step-1"):
        assert load_latest(tmp_path, *trained(), accelerator).step == 2


def test_a_damaged_newest_is_removed_by_the_next_checkpoint(tmp_path, accelerator):
    for step in (1, 2, 3):
        save(tmp_path, step, accelerator, keep=9)
    (tmp_path / "step-3/optimizer.pt").write_bytes(b"")
    with pytest.warns(UserWarning, match="step-3"):
        assert load_latest(tmp_path, *trained(), accelerator).step == 2
    save(tmp_path, 2, accelerator, keep=9)
    assert saved_steps(tmp_path) == [1, 2]


def test_a_write_that_was_cut_short_is_invisible(tmp_path, accelerator):
    save(tmp_path, 1, accelerator)
    leftover = tmp_path / ".step-2.tmp"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    assert load_latest(tmp_path, *trained(), accelerator).step == 1
    save(tmp_path, 3, accelerator)
    assert not leftover.exists()
