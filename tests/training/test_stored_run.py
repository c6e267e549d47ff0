"""A run that an earlier version began goes on under this one.

`stored_run/` is a run of commit a35286b, stopped at step 4 of 8, with the metrics of its last four steps as
that commit computed them. It is never made anew: what a later version adds or renames must still read it.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from nystromformer.cli import main
from nystromformer.errors import UserError
from nystromformer.settings import PrepareSettings, PretrainSettings
from nystromformer.settings import identity as stored
from nystromformer.settings.compose import compose
from nystromformer.training.run_folder import RunFolder

from .runs import events

WORDS = [
    "debug=smoke", "data=text", "data.files=[stories.txt]", "data.max_documents=null", "data.workers=1",
    "tokenizer.vocab_size=300", "training.precision=float32", "model.hidden_size=16",
    "model.num_hidden_layers=1", "model.intermediate_size=16", "model.max_length=32", "training.steps=8",
    "training.log_every=1", "training.checkpoint_every=4", "training.validate_every=4",
    "training.validation_examples=4", "training.keep_best=false", "name=stored",
]  # fmt: skip
MADE = 1764000000
"""When the corpus was written, as far as its run knows."""


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "runs/stored"
    shutil.copytree(Path(__file__).parent / "stored_run", folder)
    corpus = shutil.move(folder / "stories.txt", tmp_path / "stories.txt")
    os.utime(corpus, (MADE, MADE))
    monkeypatch.chdir(tmp_path)
    return folder


def check(*words: str) -> None:
    settings = compose("pretrain", [*WORDS, *words])
    assert isinstance(settings, PretrainSettings)
    RunFolder(settings).check(settings)


def edit(run: Path, before: str, after: str) -> None:
    content = (run / "config.yaml").read_text()
    assert content.count(before) == 1
    (run / "config.yaml").write_text(content.replace(before, after))


def test_run_of_an_earlier_version_goes_on_with_the_same_losses(run, capsys):
    then = {e["step"]: e["mlm_loss"] for e in events(run, "train")}
    assert main(["pretrain", *WORDS]) == 0
    assert "resumed at step 4" in capsys.readouterr().out
    now = {e["step"]: e["mlm_loss"] for e in events(run, "train")}
    assert list(now) == list(range(1, 9))
    assert now == pytest.approx(then, abs=1e-3)


@pytest.mark.parametrize("line", ["  tf32: false\n", "  verify: false\n", "  length_groups: 2\n"])
def test_setting_that_did_not_exist_when_the_run_began_has_its_default(run, line):
    edit(run, line, "")
    groups = ["training.length_groups=4"] if "groups" in line else []
    check(*groups)
    if groups:
        with pytest.raises(UserError, match=r"write training.length_groups=4 to resume it"):
            check()


def test_removed_setting_is_named_with_what_to_do(run):
    edit(run, "  tf32: false\n", "  tf32: false\n  keep_checkpoint: 9\n")
    with pytest.raises(UserError) as told:
        check()
    message = str(told.value)
    assert "training.keep_checkpoint=9, which is no setting of this version" in message
    assert "maybe training.keep_checkpoints now" in message
    assert "delete its line there" in message
    assert "name=OTHER" in message
    assert "\n" not in message
    edit(run, "  keep_checkpoint: 9\n", "")
    check()


def test_renamed_setting_keeps_its_value(run, monkeypatch):
    edit(run, "  weight_decay: 0.01\n", "  decay: 0.02\n")
    monkeypatch.setitem(stored.RENAMED, "training.decay", "training.weight_decay")
    check("training.weight_decay=0.02")
    with pytest.raises(UserError, match=r"write training.weight_decay=0.02 to resume it"):
        check()


def test_value_that_is_none_any_more_is_one_line(run):
    edit(run, "  steps: 8\n", "  steps: many\n")
    with pytest.raises(UserError, match=r"config.yaml has training.steps=many, which this") as told:
        check()
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("content", ["[1, 2]", "a: [", "\x00", ""])
def test_damaged_configuration_is_one_line(run, content):
    (run / "config.yaml").write_text(content)
    with pytest.raises(UserError, match=r"config\.yaml") as told:
        check()
    assert "\n" not in str(told.value)


def test_new_setting_of_an_entry_of_a_list_has_its_default(run):
    edit(run, "  sources: []\n", "  sources:\n  - kind: text\n    files: [a.txt]\n")
    edit(run, "corpus: text", "corpus: mixture")
    settings = compose("pretrain", WORDS)
    assert isinstance(settings, PretrainSettings)
    found = RunFolder(settings).stored()
    assert found is not None
    assert (found.data.sources[0].files, found.data.sources[0].weight) == (["a.txt"], 1.0)


def test_manifest_of_an_earlier_version_is_read_and_a_removed_setting_named(tmp_path):
    content = {"data": {"corpus": "text", "files": ["a.txt"]}, "seed": 3}
    read = stored.read_stored(PrepareSettings, content, "manifest.json", "prepare it again")
    assert (read.data.files, read.seed, read.max_length) == (["a.txt"], 3, PrepareSettings().max_length)
    with pytest.raises(UserError, match=r"manifest.json has data.stemming=true.*or prepare it again"):
        stored.read_stored(PrepareSettings, {"data": {"stemming": True}}, "manifest.json", "prepare it again")
