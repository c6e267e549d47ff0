"""The commands of docs/data.md run, on a corpus of the test's own."""

import re
import shlex
import stat
import subprocess
from pathlib import Path

import pytest

from nystromformer.cli import main
from tests.data.conftest import made_up_documents
from tests.data.test_wikiextractor import TEXT

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/data.md").read_text(encoding="utf-8")


def commands() -> list[list[str]]:
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line.strip()]


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that the page speaks of, in the current folder; returns what makes the commands small."""
    import gzip
    import json

    monkeypatch.chdir(tmp_path)
    Path("notes").mkdir()
    Path("notes/one.txt").write_text("\n\n".join(made_up_documents(60)))
    rows = [json.dumps({"text": text}) for text in made_up_documents(20, seed=1)]
    Path("mails.jsonl.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    Path("extracted/AA").mkdir(parents=True)
    Path("extracted/AA/wiki_00").write_text(TEXT)
    return ["data.workers=1", "data.shard_megabytes=0.02", "tokenizer.vocab_size=400", "model.max_length=64"]


def test_every_command_runs(corpus: list[str], capsys: pytest.CaptureFixture[str]):
    assert len(commands()) == 5
    for words in commands():
        assert words[:2] == [".venv/bin/nystromformer", "prepare"]
        assert main([*words[1:], *corpus]) == 0, words
        printed = capsys.readouterr().out
        if any(word.startswith("shard=") for word in words):
            assert not re.search(r"^prepared/text-\w+$", printed, re.MULTILINE)
        else:
            assert "  train: " in printed


def test_links_and_options_exist():
    for option in re.findall(r"`(tokenizer|data)=(\w+)`", PAGE):
        assert (ROOT / "configs" / option[0] / f"{option[1]}.yaml").is_file(), option
    for script in re.findall(r"`(scripts/\S+)`", PAGE):
        assert (ROOT / script).stat().st_mode & stat.S_IXUSR


def test_the_array_recipe_submits_the_shares_and_the_merge(tmp_path: Path):
    """With a stand-in for sbatch, whose wrapped commands are then read as a shell reads them."""
    sbatch = tmp_path / "sbatch"
    sbatch.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" "--" >> {tmp_path}/calls\necho "17;cluster"\n')
    sbatch.chmod(0o755)
    script = ROOT / "scripts/slurm/prepare_array.sh"
    subprocess.run(
        ["bash", str(script), "data=text", "data.files=[a b.txt,c.txt]"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "MACHINES": "3"}, check=True, capture_output=True,
    )  # fmt: skip
    calls = (tmp_path / "calls").read_text().split("--\n")[:2]
    assert "--array=1-3\n" in calls[0]
    assert "--dependency=afterok:17\n" in calls[1]
    wrapped = [re.search(r"--wrap=exec (.*)", call)[1] for call in calls]  # type: ignore[index]
    assert shlex.split(wrapped[0]) == [
        "nystromformer", "prepare", "data=text", "data.files=[a b.txt,c.txt]",
        "shard=$SLURM_ARRAY_TASK_ID/3", "data.workers=16",
    ]  # fmt: skip
    assert shlex.split(wrapped[1])[-1] == "merge=true"
