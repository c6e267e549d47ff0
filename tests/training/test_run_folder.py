from dataclasses import replace

import pytest

from nystromformer.errors import UserError
from nystromformer.files import write_atomically
from nystromformer.settings import ModelSettings, PretrainSettings, TrainingSettings
from nystromformer.training.run_folder import RunFolder


def settings(tmp_path, **changes) -> PretrainSettings:
    return replace(PretrainSettings(name="a", runs_folder=str(tmp_path)), **changes)


def open_run(given: PretrainSettings) -> RunFolder:
    folder = RunFolder(given)
    folder.check(given)
    folder.create(given)
    return folder


def test_the_same_settings_open_again(tmp_path):
    open_run(settings(tmp_path))
    assert open_run(settings(tmp_path)).checkpoints.is_dir()


def test_how_fast_may_change(tmp_path):
    open_run(settings(tmp_path))
    open_run(settings(tmp_path, training=TrainingSettings(micro_batch_size=2, loader_workers=7)))


def test_another_configuration_is_refused_naming_key_and_fix(tmp_path):
    open_run(settings(tmp_path))
    with pytest.raises(UserError, match=r"write model.hidden_size=768 to resume it, or name=OTHER"):
        open_run(settings(tmp_path, model=ModelSettings(hidden_size=384)))


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write the run folder .*write runs_folder=FOLDER"):
        open_run(settings(tmp_path / "file"))


def test_atomic_write_leaves_no_leftover(tmp_path):
    write_atomically(tmp_path / "x", "one")
    write_atomically(tmp_path / "x", "two")
    assert (tmp_path / "x").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
