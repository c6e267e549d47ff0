"""Data sets of the hub, and folders of the same layout: for the kinds that read files, as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nystromformer.errors import UserError
from nystromformer.hub import first_line, look_for
from nystromformer.settings.finetune import TaskDataSettings

_SPLITS = {"train": "train", "dev": "validation", "test": "test"}
"""What each setting's split is called there."""


def load_from_hub(repository: str, configuration: str | None, otherwise: str) -> Any:
    """A DatasetDict of the hub, or of a folder; raises UserError with what to write `otherwise`."""
    look_for(repository)
    import datasets  # heavy; it goes by what was found

    folder = Path(repository).expanduser()
    try:
        if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
            found = datasets.load_from_disk(str(folder))
            return found if isinstance(found, datasets.DatasetDict) else datasets.DatasetDict(train=found)
        return datasets.load_dataset(str(folder) if folder.is_dir() else repository, configuration)
    except Exception as error:  # the library and the hub's client raise a dozen kinds
        where = "as a data set" if folder.is_dir() else "from the hub"
        raise UserError(f"{repository} cannot be loaded {where} ({first_line(error)}): {otherwise}") from None


@contextmanager
def as_files(data: TaskDataSettings) -> Iterator[tuple[TaskDataSettings, dict[str, str]]]:
    """The settings with the splits of data.hub as files, and what people know each file as.

    Raises:
        UserError: the data set or a split is not there.
    """
    if data.hub is None:
        yield data, {}
        return
    loaded = load_from_hub(
        data.hub, data.hub_config, "connect to the network, correct data.hub or data.hub_config, or write "
        "data.train=FILE",
    )  # fmt: skip
    if data.hub_splits:
        chosen = dict(zip(_SPLITS, data.hub_splits, strict=False))
    else:
        chosen = {part: name for part, name in _SPLITS.items() if name in loaded or part == "train"}
    for name in chosen.values():
        if name not in loaded:
            raise UserError(
                f"data.hub={data.hub} has no split {name!r}: write data.hub_splits=[…] with names of "
                f"{', '.join(loaded)}"
            )
    if "test" in chosen and not data.hub_splits and _is_unlabelled(loaded[chosen["test"]]):
        del chosen["test"]  # as in GLUE: for a submission
    with TemporaryDirectory(prefix="nystromformer-") as folder:
        paths = {part: Path(folder) / f"{part}.jsonl" for part in chosen}
        for part, path in paths.items():
            _write(loaded[chosen[part]], path)
        named = {str(path): f"{data.hub}, {chosen[part]}" for part, path in paths.items()}
        files: dict[str, Any] = {part: str(path) for part, path in paths.items()}
        yield replace(data, **files), named


def _is_unlabelled(rows: Any) -> bool:
    """Whether a class of every row is −1, which stands for none there."""
    columns = [name for name, feature in rows.features.items() if hasattr(feature, "int2str")]
    return any(len(rows) and set(rows.unique(name)) == {-1} for name in columns)


def _write(rows: Any, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            named = {name: _named(value, rows.features[name]) for name, value in row.items()}
            file.write(json.dumps(named, default=str) + "\n")


def _named(value: Any, feature: Any) -> Any:
    """The value with the names of classes for their numbers."""
    if hasattr(feature, "int2str"):
        return None if value is None or value == -1 else feature.int2str(value)
    inner = getattr(feature, "feature", feature[0] if isinstance(feature, list) else None)
    if inner is not None and isinstance(value, list):
        return [_named(entry, inner) for entry in value]
    fields = inner if isinstance(inner, dict) else feature
    if isinstance(fields, dict) and isinstance(value, dict):
        return {name: _named(entry, fields.get(name)) for name, entry in value.items()}
    if isinstance(value, list) and isinstance(feature, dict):
        return [_named(entry, feature) for entry in value]
    return value
