"""A hub that cannot be reached costs one line, at once; one that can be is asked as ever."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from nystromformer import hub

COMMANDS = {
    "export": "checkpoint={} target=out",
    "convert": "source={} target=out",
    "finetune": "task=sst2 checkpoint={} data.root=.",
    "pretrain": "init=bert init.path={}",
    "reproduce": "figure=landmarks scale=cpu checkpoint={}",
}


@pytest.fixture
def asked(monkeypatch) -> Iterator[list[str]]:
    """What was asked of the hub, which does not answer."""
    found: list[str] = []

    class Session:
        def head(self, address: str, timeout: float) -> None:
            assert timeout <= 5
            found.append(address)
            raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "get_session", Session)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub._look_for_hub.cache_clear()
    yield found
    hub._look_for_hub.cache_clear()


def test_a_hub_out_of_reach_is_asked_once_and_then_left_alone(asked):
    hub.look_for("owner/model")
    hub.look_for("owner/other")
    assert asked == [constants.ENDPOINT]
    assert huggingface_hub.constants.is_offline_mode()


def test_what_can_only_be_a_folder_asks_nobody(asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    for path in (str(tmp_path), "here", "runs/demo/model", "./absent", "~/absent", "../absent"):
        hub.look_for(path)
    assert asked == []
    assert not constants.HF_HUB_OFFLINE


def test_a_hub_within_reach_is_used(asked, monkeypatch):
    class Session:
        def head(self, address: str, timeout: float) -> str:
            return "answer"

    monkeypatch.setattr(huggingface_hub, "get_session", Session)
    hub.look_for("owner/model")
    assert not constants.HF_HUB_OFFLINE


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_in_one_line_that_a_name_is_out_of_reach(command, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
    environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "cache")}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    words = [sys.executable, "-m", "nystromformer", command, *COMMANDS[command].format("no/where").split()]
    done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "no/where: no checkpoint there and none on the hub within reach" in line
    assert not (tmp_path / "out").exists()
