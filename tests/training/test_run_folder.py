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


DECIDES = ["max_minutes", "steps", "warmup_steps", "learning_rate", "beta1", "beta2", "epsilon", "seed"]


@pytest.mark.parametrize("name", [*DECIDES, "weight_decay", "gradient_clipping", "length_groups"])
def test_what_decides_a_step_may_not_change(tmp_path, name):
    open_run(settings(tmp_path))
    other = {"max_minutes": 3.0, "seed": 7, "gradient_clipping": 2.0}.get(name, 1)
    with pytest.raises(UserError, match=rf"write training.{name}=.* to resume it"):
        open_run(settings(tmp_path, training=TrainingSettings(**{name: other})))


def test_more_minutes_are_refused_with_the_minutes_of_the_run(tmp_path):
    open_run(settings(tmp_path, training=TrainingSettings(max_minutes=5.5)))
    with pytest.raises(UserError, match=r"training.max_minutes=5.5, and now training.max_minutes=9.0"):
        open_run(settings(tmp_path, training=TrainingSettings(max_minutes=9.0)))
