"""What changes with a setting stands beside its field, and every folder that is kept goes by it."""

from __future__ import annotations

import copy
import dataclasses
import json
import typing
from collections.abc import Iterator
from operator import attrgetter
from typing import Any

import pytest

from nystromformer.data.plan import settings_that_matter
from nystromformer.errors import UserError
from nystromformer.reproduce.lra.training import Cell
from nystromformer.reproduce.result import configuration_of, read_finished
from nystromformer.settings import PretrainSettings
from nystromformer.settings.compose import SCHEMAS, compose
from nystromformer.settings.data import SourceSettings
from nystromformer.settings.finetune import FinetuneSettings
from nystromformer.settings.identity import flattened, identity, nested, paths_of
from nystromformer.settings.pretrain import PrepareSettings
from nystromformer.settings.scale import LraScale
from nystromformer.settings.schema import Role, Section, Setting, result, settings_of
from nystromformer.tasks.identity import compare, note
from nystromformer.tasks.identity import identity as of_job
from nystromformer.training.run_folder import RunFolder

MAY_CHANGE = {
    "name", "runs_folder", "data.workers", "data.folder", "data.prepared", "data.malformed_rows",
    "data.streaming", "data.verify", "training.micro_batch_size", "training.compile", "training.cuda_graphs",
    "training.static_shapes", "training.loader_workers", "training.log_every", "training.validate_every",
    "training.checkpoint_every", "training.keep_checkpoints", "training.keep_best", "training.on_full_disk",
    "training.max_skipped_steps", "training.parallel", "training.approximation_error_every",
    "training.approximation_error_examples", "training.profile_steps", "training.deterministic",
    "model.from_source", "model.gradient_checkpointing", "tracking.tracker", "tracking.project",
}  # fmt: skip
"""Of a run, as of commit 2db27f1: neither its losses nor its learning rates depend on them."""
NOT_OF_FILES = {
    "data.prepared", "data.folder", "data.workers", "data.streaming", "data.verify", "data.malformed_rows",
    "data.masking", "data.masking_probability", "data.validation_masking_probability", "data.sentence_order",
}  # fmt: skip
FREE_OF_A_SEED = {
    "model.gradient_checkpointing", "training.compile", "training.cuda_graphs", "training.eval_batch_size",
    "training.log_every",
    "training.max_skipped_steps", "training.micro_batch_size", "training.profile_steps", "tracking.tracker",
    "tracking.project",
}  # fmt: skip
BESIDE_A_SEED = {
    "name", "runs_folder", "seeds", "first_seed", "processes", "keep_models", "submission", "beside",
    "task.name", "task.learning_rates", "task.batch_sizes",
}  # fmt: skip


def all_sections(schema: type) -> Iterator[type]:
    yield schema
    for hint in typing.get_type_hints(schema).values():
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            yield from all_sections(hint)


SECTIONS = {each for schema in (*SCHEMAS.values(), PrepareSettings) for each in all_sections(schema)}


@pytest.mark.parametrize("section", sorted([*SECTIONS, SourceSettings], key=str))
def test_every_setting_says_what_changes_with_it(section):
    assert issubclass(section, Section)
    settings = list(settings_of(section))
    assert settings
    assert all(isinstance(setting.role, Role) for setting in settings)
    assert all(setting.role is Role.PATH for setting in settings if setting.content)


def test_a_setting_that_says_nothing_is_refused():
    @dataclasses.dataclass
    class Silent(Section):
        said: int = result(1)
        silent: int = 2

    with pytest.raises(TypeError, match=r"Silent.silent does not say what changes with it"):
        list(settings_of(Silent))


def changed(settings: Any, setting: Setting) -> Any:
    """A copy in which that setting has another value of its type, possible or not."""
    *sections, leaf = setting.key.split(".")
    other = copy.deepcopy(settings)
    place = attrgetter(".".join(sections))(other) if sections else other
    before = getattr(place, leaf)
    value: Any = {bool: not before, str: "other", list: ["7"]}.get(setting.kind)
    if setting.kind in (int, float):
        value = setting.kind(1 if before is None else before + 1)
    if leaf == "sources":
        value = [SourceSettings(weight=2.0)]
    elif leaf in ("beta1", "lengths", "learning_rates", "batch_sizes"):
        value = 0.5 if leaf == "beta1" else [7]
    setattr(place, leaf, value)
    return other


def refused(check: Any, *arguments: Any) -> str:
    try:
        check(*arguments)
    except UserError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> PretrainSettings:
    settings = PretrainSettings(runs_folder=str(tmp_path_factory.mktemp("runs")))
    RunFolder(settings).create(settings)
    return settings


@pytest.mark.parametrize("setting", [*settings_of(PretrainSettings)], ids=lambda setting: setting.key)
def test_a_run_goes_on_with_another_setting_or_is_refused(run, setting):
    line = refused(RunFolder(run).check, changed(run, setting))
    assert bool(line) == (setting.key not in MAY_CHANGE) == (setting.role in (Role.RESULT, Role.PATH))
    if line:
        assert f" holds a run with {setting.key}=" in line
        assert f" and now {setting.key}=" in line
        assert line.count("\n") == 0
        assert line.endswith(" to resume it, or name=OTHER for a new run")


def test_all_that_differs_is_told_at_once(run):
    other = copy.deepcopy(run)
    other.training.steps, other.data.files = 7, ["a.txt", "b c.txt"]
    line = refused(RunFolder(run).check, other)
    assert "data.files=[] training.steps=100000, and now data.files=[a.txt,b c.txt] training.steps=7" in line


@pytest.mark.parametrize("setting", [*settings_of(PrepareSettings)], ids=lambda setting: setting.key)
def test_a_preparation_is_of_what_its_files_depend_on(setting):
    usual = PrepareSettings()
    same = settings_that_matter(changed(usual, setting)) == settings_that_matter(usual)
    assert same == (setting.key in NOT_OF_FILES)


@pytest.mark.parametrize("setting", [*settings_of(FinetuneSettings)], ids=lambda setting: setting.key)
def test_a_seed_goes_on_with_another_setting_or_is_refused(tmp_path, setting):
    usual = FinetuneSettings()
    note(tmp_path, of_job(usual, usual.task), {})
    other = changed(usual, setting)
    line = refused(compare, tmp_path, of_job(other, other.task), {})
    assert bool(line) == (setting.key not in FREE_OF_A_SEED | BESIDE_A_SEED)
    if line:
        assert f"holds results with {setting.key}=" in line
        assert line.endswith(" to add to them, or name=OTHER for a new run")


def test_what_is_known_by_content_may_lie_elsewhere(tmp_path):
    usual = FinetuneSettings(checkpoint="here")
    contents = {"checkpoint": "a", "tokenizer": "b", "train": "c", "dev": "d", "test": "e"}
    note(tmp_path, of_job(usual, usual.task), contents)
    for setting in settings_of(FinetuneSettings):
        if setting.key in paths_of(FinetuneSettings):
            other = changed(usual, setting)
            assert not refused(compare, tmp_path, of_job(other, other.task), contents)
            assert "since" in refused(
                compare, tmp_path, of_job(other, other.task), {**contents, str(setting.content): "another"}
            )


@pytest.mark.parametrize("task", ["listops", "text", "image"])
@pytest.mark.parametrize("setting", [*settings_of(LraScale)], ids=lambda setting: setting.key)
def test_a_cell_of_the_arena_is_of_its_own_task(tmp_path, setting, task):
    usual, cell = LraScale(), Cell(task, "nystrom", 0)
    places = [cell.folder(str(tmp_path), scale, "cpu", "") for scale in (usual, changed(usual, setting))]
    free = setting.key in ("tasks", "attentions", "pretrained", "seeds")
    pretraining = setting.key.startswith("pretrain_")
    others = bool(setting.of) and task not in setting.of
    named = [
        name
        for name in ("listops", "text", "retrieval", "image", "pathfinder")
        if setting.key.startswith(name)
    ]
    assert set(named) <= set(setting.of)
    assert (places[0] == places[1]) == (free or pretraining or others)


@pytest.mark.parametrize("setting", [*settings_of(LraScale)], ids=lambda setting: setting.key)
def test_a_result_is_measured_anew_where_its_figures_would_change(tmp_path, setting):
    usual = compose("reproduce", ["table=lra"])
    before = configuration_of(usual, "lra", "cpu")
    (tmp_path / "result.json").write_text(json.dumps({"result": "lra", "configuration": before}))
    other = copy.deepcopy(usual)
    other.scale.lra = changed(usual.scale.lra, setting)
    again = read_finished(tmp_path, configuration_of(other, "lra", "cpu")) is None
    assert again


def test_a_result_of_a_version_without_a_setting_has_had_its_default(tmp_path):
    now = configuration_of(compose("reproduce", ["table=lra"]), "lra", "cpu")
    before = {key: value for key, value in now.items() if key != "dropout"}
    (tmp_path / "result.json").write_text(json.dumps({"result": "lra", "configuration": before}))
    assert read_finished(tmp_path, now)
    assert not read_finished(tmp_path, {**now, "dropout": 0.5})


def test_sections_are_flat_and_nested_again():
    content = dataclasses.asdict(PretrainSettings())
    assert nested(dict(flattened(content))) == content
    assert nested(identity(PretrainSettings(), roles=Role)) == content
