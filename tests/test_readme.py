"""The README's commands do what it says, in a smoke-sized variant."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from nystromformer.cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def command_lines() -> list[str]:
    """Every command of the README's shell blocks, comments cut off."""
    lines = (line for block in blocks("bash") for line in block.splitlines())
    return [shlex.join(shlex.split(line, comments=True)) for line in lines if line.strip()]


def overrides_of(line: str) -> list[str]:
    words = shlex.split(line)
    return words[words.index("pretrain") + 1 :]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("readme")
    return ["debug=smoke", "data.workers=1", f"data.folder={folder}/prepared", f"runs_folder={folder}/runs"]


@pytest.fixture(scope="module")
def trained(smoke) -> Path:
    """The model of a smoke-sized run of the quick start's command."""
    assert main(["pretrain", *smoke]) == 0
    return Path(smoke[-1].removeprefix("runs_folder=")) / "smoke/model"


def test_the_quick_start_is_there():
    assert command_lines()[:2] == ["make pretrain", "make test"]


@pytest.mark.parametrize(
    "line", [line for line in command_lines() if " pretrain" in line and "launch" not in line]
)
def test_every_run_composes(line, tmp_path, capsys):
    assert main(["pretrain", *overrides_of(line), "--cfg", "job"]) == 0
    assert "learning_rate" in capsys.readouterr().out


@pytest.mark.parametrize("line", [line for line in command_lines() if "nystromformer convert" in line])
def test_every_conversion_composes(line, capsys):
    words = shlex.split(line)
    assert main([*words[words.index("convert") :], "--cfg", "job"]) == 0
    assert "target: mine" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line", [line for line in command_lines() if re.search("nystromformer (finetune|reproduce)", line)]
)
def test_every_other_command_composes(line, capsys):
    assert main([*shlex.split(line)[1:], "--cfg", "job"]) == 0
    assert "runs_folder: runs" in capsys.readouterr().out


@pytest.mark.parametrize("experiment", re.findall(r"\| `pretrain (experiment=\w+)`", README))
def test_every_experiment_of_the_table_composes(experiment, capsys):
    assert main(["pretrain", experiment, "--cfg", "job"]) == 0
    assert "steps: " in capsys.readouterr().out


@pytest.mark.skipif(not (ROOT / ".venv/.installed").exists(), reason="`make setup` has not made .venv")
def test_make_pretrain(smoke):
    """The quick start's own command, with the size changed and nothing else."""
    done = subprocess.run(
        ["make", "pretrain", f"ARGS={shlex.join([*smoke, 'name=made'])}"],
        cwd=ROOT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for words in ("masked tokens, nats", "sentence order, nats", "[MASK]", "runs/made/model"):
        assert words in done.stdout


def test_two_processes_by_torchrun(smoke):
    (line,) = [line for line in command_lines() if "torchrun" in line]
    assignment, torchrun, *rest = shlex.split(line)
    assert torchrun == ".venv/bin/torchrun"
    name, value = assignment.split("=")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *rest, *smoke[1:], "name=two"],
        cwd=ROOT, capture_output=True, text=True, timeout=240,
        env={**os.environ, name: value, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 × cpu" in done.stdout
    assert done.stdout.count("masked tokens, nats") == 1


def test_your_own_text(smoke, tmp_path, monkeypatch):
    from tests.training.conftest import write_corpus

    (line,) = [line for line in command_lines() if "data=text" in line]
    (tmp_path / "notes").mkdir()
    write_corpus(tmp_path / "notes/one.txt")
    jsonl = b"".join(b'{"text": "Mail %d came. It was read. Nobody replied."}\n' % n for n in range(30))
    import gzip

    (tmp_path / "mails.jsonl.gz").write_bytes(gzip.compress(jsonl))
    monkeypatch.chdir(tmp_path)
    changes = ["tokenizer.vocab_size=400", "data.max_documents=null", "name=mine", "training.steps=3"]
    assert main(["pretrain", *smoke, *overrides_of(line), *changes]) == 0


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_examples(number, trained, capsys):
    code = blocks("python")[number].replace("runs/demo/model", str(trained))
    names: dict = {}
    exec(compile(code, f"README.md, Python block {number + 1}", "exec"), names)
    if "out" in names:
        assert names["out"].shape == (2, 12, 4096, 64)
        assert names["out"].isfinite().all()
    else:
        assert "token_str" in capsys.readouterr().out


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / target).exists(), target
