"""From the words of the command line to one checked dataclass.

Hydra composes `configs/COMMAND.yaml` with its groups and overrides over the schema; the result leaves
here as a plain dataclass, and every mistake as a UserError. Nobody below sees a DictConfig.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

import nystromformer
from nystromformer.errors import UserError
from nystromformer.settings import mistakes
from nystromformer.settings.benchmark import BenchmarkSettings
from nystromformer.settings.convert import ConvertSettings
from nystromformer.settings.export import ExportSettings
from nystromformer.settings.finetune import FinetuneSettings, PredictSettings
from nystromformer.settings.model import INHERITED, ModelSettings
from nystromformer.settings.pretrain import PrepareCommandSettings, PretrainSettings
from nystromformer.settings.reproduce import ReproduceSettings
from nystromformer.settings.retrieval import EvaluateCommandSettings
from nystromformer.settings.schema import Section, Setting, settings_of

SCHEMAS: dict[str, type[Section]] = {
    "pretrain": PretrainSettings,
    "prepare": PrepareCommandSettings,
    "finetune": FinetuneSettings,
    "evaluate": EvaluateCommandSettings,
    "predict": PredictSettings,
    "benchmark": BenchmarkSettings,
    "convert": ConvertSettings,
    "export": ExportSettings,
    "reproduce": ReproduceSettings,
}

OF_SOURCE = "${source:}"
"""In a YAML: the value that init.path has, where init is no scratch."""


def _store_schemas() -> None:
    """Make the dataclasses known to Hydra.

    What trains a model has two: in the second every model setting is the source's until something is
    written over it, so that what is left of it is what nobody wrote.
    """
    store = ConfigStore.instance()
    for command, schema in SCHEMAS.items():
        store.store(name=f"{command}_schema", node=schema)
        if issubclass(schema, PretrainSettings):
            store.store(name=command, group="schema", node=schema, package="_global_")
            from_source = OmegaConf.structured(schema)
            for name in INHERITED:
                from_source.model[name] = OF_SOURCE
            store.store(name=f"{command}_from_source", group="schema", node=from_source, package="_global_")


_store_schemas()


def package_folder(package: str, folder: str) -> str:
    """`${package_folder:PACKAGE,FOLDER}` in a YAML: data that an installed package brings along."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise UserError(
            f"the package {package.replace('_', '-')} is not installed: pip install 'nystromformer[samples]'"
        )
    return str(Path(found.submodule_search_locations[0]) / folder)


OmegaConf.register_new_resolver("package_folder", package_folder, replace=True)


def compose(command: str, overrides: Sequence[str] = ()) -> Section:
    """The settings of `nystromformer COMMAND OVERRIDES`, checked.

    Raises UserError, one line for each mistake.
    """
    settings, _ = resolve(command, overrides)
    settings.check()
    if command == "pretrain" and isinstance(settings, PretrainSettings):
        # Known before the processes meet: torchrun and Accelerate's launcher set it.
        complaints = list(settings.training.complaints_on(int(os.environ.get("WORLD_SIZE", "1"))))
        if complaints:
            raise UserError("\n".join(complaints))
    return settings


def as_yaml(settings: Section) -> str:
    """The settings as a file that could stand in `configs/`."""
    config = OmegaConf.structured(settings)
    if isinstance(settings, PretrainSettings):
        for name in settings.model.from_source:
            config.model[name] = OF_SOURCE
    return OmegaConf.to_yaml(config)


def resolve(command: str, overrides: Sequence[str] = ()) -> tuple[Section, dict[str, str | None]]:
    """Like `compose`, without asking whether the values make sense together.

    Returns the settings, and the option that each group has in them.
    """
    known = {setting.key: setting for setting in settings_of(SCHEMAS[command])}
    folder = config_folder()
    groups = groups_in(folder)
    parsed = [_checked(text, known, groups) for text in overrides]
    written = {o.key_or_group: text.partition("=")[2] for o, text in zip(parsed, overrides, strict=True)}
    try:
        with hydra.initialize_config_dir(str(folder), job_name="nystromformer", version_base="1.3"):
            # Of a setting that is called as a group of another command Hydra would choose the group.
            both = known.keys() & groups.keys()
            values = {o.key_or_group: o.value() for o in parsed if o.key_or_group in both}
            words = _for_hydra([o for o in parsed if o.key_or_group not in values], groups)
            config = hydra.compose(command, words, return_hydra_config=True)
            if issubclass(SCHEMAS[command], PretrainSettings) and config.init.source != "scratch":
                # An experiment's model is for a run from scratch; one that the user named is written.
                words += [f"schema={command}_from_source", *([] if "model" in written else ["~model"])]
                config = hydra.compose(command, words, return_hydra_config=True)
                _note_what_is_the_sources(config.model)
            taken = config.hydra.runtime.choices
            dropped = {"model"} if "~model" in words else set()
            choices = {group: taken.get(group) for group in groups if group in taken.keys() | dropped}
            with open_dict(config):
                del config["hydra"]
            for key, value in values.items():
                config[key] = value
            settings = OmegaConf.to_object(config)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise UserError(mistakes.in_one_line(error, written, known, groups)) from error
    assert isinstance(settings, SCHEMAS[command])
    return settings, choices


def _note_what_is_the_sources(model: DictConfig) -> None:
    """List the settings that are still OF_SOURCE; they keep the schema's value, which nobody is to read."""
    left = [name for name in INHERITED if OmegaConf.is_interpolation(model, name)]
    for name in left:
        model[name] = getattr(ModelSettings, name)
    model.from_source = sorted({*model.from_source, *left}, key=INHERITED.index)


def config_folder() -> Path:
    """The Hydra tree: inside an installed package, or beside the package in a checkout."""
    package = Path(nystromformer.__file__).resolve().parent
    for folder in (package / "configs", package.parent / "configs"):
        if folder.is_dir():
            return folder
    raise UserError(f"{package / 'configs'} is missing: install nystromformer again")


def groups_in(folder: Path) -> dict[str, dict[str, str]]:
    """Each group's options, each with the first comment of its file."""
    return {
        group.name: {file.stem: _first_comment(file) for file in sorted(group.glob("*.yaml"))}
        for group in sorted(folder.iterdir())
        if group.is_dir()
    }


def _first_comment(file: Path) -> str:
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("# ") and not line.startswith("# @package"):
            return line.removeprefix("# ")
    return ""


def _checked(text: str, known: Mapping[str, Setting], groups: mistakes.Groups) -> Override:
    """The override parsed, its key and, for a group, its option known to exist."""
    try:
        (override,) = OverridesParser.create().parse_overrides([text])
    except HydraException as error:
        raise UserError(mistakes.unreadable_override(text, groups)) from error
    key = override.key_or_group
    if key not in known and key not in groups:
        raise UserError(mistakes.unknown_setting(key, known, groups))
    if override.package is not None or override.is_add() or override.is_force_add() or override.is_delete():
        raise UserError(f"{text}: settings cannot be added or removed: write {key}=VALUE")
    if override.is_sweep_override():
        raise UserError(f"{text} names several values: write one, or a list in brackets")
    if key in groups and key not in known:
        option = override.value()
        if option is not None and not (isinstance(option, str) and option in groups[key]):
            raise UserError(mistakes.unknown_option(key, text.partition("=")[2], groups))
    return override


def _for_hydra(overrides: Iterable[Override], groups: mistakes.Groups) -> list[str]:
    """Hydra spells "no option" as a deletion, `~experiment`; a user writes `experiment=null`."""
    words = {}
    for override in overrides:  # of two words for one key, the later wins
        key = override.key_or_group
        words[key] = f"~{key}" if key in groups and override.value() is None else override.input_line or ""
    return list(words.values())
